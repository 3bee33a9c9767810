"""SANA-Video: one batched call for guidance, uniform blocks of linear attention."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .video import Video, adaln_embedding


class SanaVideo(Video):
    """``SanaVideoTransformer3DModel``: latents [B, C, F, H, W]; a timestep a frame where the first one is given.

    A ControlNet's residuals are added after the blocks.
    """

    name = "sana-video"
    transformers = ("SanaVideoTransformer3DModel",)
    blocks = (BlockList("transformer_blocks"),)
    between = True
    batched_guidance = True
    shared_config = ("in_channels", "out_channels", "caption_channels")
    fresh = ("time_embed", "scale_shift_table", "proj_out")

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        if inputs.get("guidance") is not None:  # embedded with the timestep
            return super().modulation(model, inputs, projected)
        return adaln_embedding(model.time_embed, inputs, projected)
