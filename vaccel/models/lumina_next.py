"""Lumina-Next: one batched call for guidance, of three channels only; uniform blocks."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .picture import Picture


class LuminaNext(Picture):
    """``LuminaNextDiT2DModel``: latents [B, C, H, W]; a learned variance follows the prediction.

    The rows of its batched guidance are [conditional; unconditional].
    """

    name = "lumina-next"
    transformers = ("LuminaNextDiT2DModel",)
    blocks = (BlockList("layers"),)
    indexes_blocks = False
    shared_config = ("in_channels", "learn_sigma", "cross_attention_dim")
    fresh = ("time_caption_embed", "norm_out")

    def answered(self, model: nn.Module) -> int:
        return model.config.in_channels * (2 if model.config.learn_sigma else 1)

    def width(self, model: nn.Module) -> int:
        return model.config.hidden_size

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return model.time_caption_embed(inputs["timestep"], inputs["encoder_hidden_states"], inputs["encoder_mask"])

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        return None  # the text is embedded beside the timestep

    def guided(
        self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """u + w (c - u) in the first three channels, c in the others."""
        cond, uncond = uncond, cond  # the rows are the other way round
        combined = super().guided(cond, uncond, scale, out)
        combined[:, 3:].copy_(cond[:, 3:])
        return combined
