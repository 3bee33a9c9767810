"""Sana: uniform blocks of linear attention; Sprint embeds its guidance instead of a second branch."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .picture import Picture


class Sana(Picture):
    """``SanaTransformer2DModel`` (Sana, Sprint, ControlNet, PAG): latents [B, C, H, W].

    A ControlNet's residuals are added after the blocks.
    """

    name = "sana"
    transformers = ("SanaTransformer2DModel",)
    blocks = (BlockList("transformer_blocks"),)
    between = True
    shared_config = ("in_channels", "out_channels", "caption_channels")
    fresh = ("time_embed", "scale_shift_table", "proj_out")

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        guidance = inputs.get("guidance")
        more = {} if guidance is None else {"guidance": guidance}
        both = model.time_embed(inputs["timestep"], **more, hidden_dtype=inputs["hidden_states"].dtype)
        return both[0 if projected else 1]

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        # The pipelines give the model other timesteps than the scheduler's, and each its own.
        return None
