"""PRX: one batched call for guidance, uniform blocks that read a text that stays as it is."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .picture import Picture


class PRX(Picture):
    """``PRXTransformer2DModel``: latents [B, C, H, W], or pixels."""

    name = "prx"
    transformers = ("PRXTransformer2DModel",)
    blocks = (BlockList("blocks"),)
    indexes_blocks = False
    batched_guidance = True
    converts_timesteps = True
    shared_config = ("in_channels", "context_in_dim")
    fresh = ("time_in", "final_layer")

    def answered(self, model: nn.Module) -> int:
        return model.config.in_channels

    def width(self, model: nn.Module) -> int:
        return model.config.hidden_size

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        return t / 1000

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return model._compute_timestep_embedding(inputs["timestep"], dtype=inputs["hidden_states"].dtype)

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        return super().modulations(model, inputs, self.timestep(timesteps.float()), projected)
