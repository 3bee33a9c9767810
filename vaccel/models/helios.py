"""Helios: chunks of a video behind its history, two calls for guidance."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .video import Video

HISTORY = ("latents_history_short", "latents_history_mid", "latents_history_long")


class Helios(Video):
    """``HeliosTransformer3DModel``: latents [B, C, F, H, W] of a chunk; tokens of its history go before its own."""

    name = "helios"
    transformers = ("HeliosTransformer3DModel",)
    blocks = (BlockList("blocks"),)
    indexes_blocks = False
    batched_guidance = False
    shared_config = ("in_channels", "out_channels", "text_dim")
    fresh = ("condition_embedder.time_embedder", "condition_embedder.time_proj", "norm_out", "proj_out")
    #: Histories of other lengths go through the blocks beside chunks of the same.
    carries_text = True

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        given = [inputs[name] for name in HISTORY if inputs.get(name) is not None]
        return tuple(size for history in given for size in history.shape) or None

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        text = inputs["encoder_hidden_states"]
        both = model.condition_embedder(inputs["timestep"], text, is_return_encoder_hidden_states=False)
        return both[1 if projected else 0]
