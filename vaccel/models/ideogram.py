"""Ideogram 4: text and picture in one sequence, and a transformer of its own for the other side of the guidance."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .family import BlockList, Inputs
from .packed import Packed


class Ideogram(Packed):
    """``Ideogram4Transformer2DModel``: [B, tokens, C], in the places of the text nothing, then the latents.

    The unconditional transformer's calls have the latents alone.
    """

    name = "ideogram4"
    transformers = ("Ideogram4Transformer2DModel",)
    blocks = (BlockList("layers", joined="encoder"),)
    indexes_blocks = False
    batched_guidance = False
    shared_config = ("in_channels", "llm_features_dim")
    fresh = ("t_embedding", "adaln_proj", "final_layer")

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        return 1 - t / 1000

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        embedding = model.t_embedding(inputs["timestep"])
        return F.silu(model.adaln_proj(embedding)) if projected else embedding

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        converted = self.timestep(timesteps.float()).to(inputs["hidden_states"].dtype)
        return super().modulations(model, inputs, converted, projected)
