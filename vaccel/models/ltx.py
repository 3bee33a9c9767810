"""LTX-Video and LTX-2: packed latents of videos, with sound beside them in LTX-2."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .layout import Layout
from .packed import Packed
from .video import adaln_embedding


class LTX(Packed):
    """``LTXVideoTransformer3DModel``: latents [B, tokens, C]; a timestep a token where frames are given."""

    name = "ltx"
    transformers = ("LTXVideoTransformer3DModel",)
    blocks = (BlockList("transformer_blocks"),)
    indexes_blocks = False
    batched_guidance = True
    converts_timesteps = False
    shared_config = ("in_channels", "out_channels", "caption_channels")
    fresh = ("time_embed", "scale_shift_table", "proj_out")

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return adaln_embedding(model.time_embed, inputs, projected)


class LTX2(Packed):
    """``LTX2VideoTransformer3DModel``: latents [B, tokens, C] of the video and of its sound, both predicted.

    A step has up to four predictions: both branches of the guidance in one call, one with attention perturbed in some
    blocks, one in which video and sound do not see each other.
    """

    name = "ltx2"
    transformers = ("LTX2VideoTransformer3DModel",)
    blocks = (BlockList("transformer_blocks", "hidden_encoder", encoder="audio_hidden_states", both=True),)
    converts_timesteps = False
    shared_config = ("in_channels", "out_channels", "audio_in_channels", "audio_out_channels", "caption_channels")

    def layout(self, model: nn.Module) -> Layout | None:
        return None

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        sound = inputs.get("audio_hidden_states")  # goes through the blocks where elsewhere the text does
        return None if sound is None else tuple(sound.shape)

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return adaln_embedding(model.time_embed, inputs, projected)
