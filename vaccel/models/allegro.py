"""Allegro: one batched call for guidance, uniform blocks."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .video import Video, adaln_embedding


class Allegro(Video):
    """``AllegroTransformer3DModel``: latents [B, C, F, H, W]."""

    name = "allegro"
    transformers = ("AllegroTransformer3DModel",)
    blocks = (BlockList("transformer_blocks"),)
    indexes_blocks = False
    batched_guidance = True
    shared_config = ("in_channels", "out_channels", "caption_channels")
    fresh = ("adaln_single", "scale_shift_table", "proj_out")

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return adaln_embedding(model.adaln_single, inputs, projected)
