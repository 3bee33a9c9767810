"""What families share whose timestep is embedded on its own, and whose pipelines divide it by 1000."""

from __future__ import annotations

import torch
from torch import nn

from .family import Family, Inputs


class Embedded(Family):
    """Says what TeaCache watches; subclasses say how a call's timestep is embedded, and projected if it is."""

    converts_timesteps = True

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        return t / 1000 if self.converts_timesteps else t

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        """The embedding of a call's timestep, [rows, ...]."""
        raise NotImplementedError

    def projection(self, model: nn.Module, embedding: torch.Tensor) -> torch.Tensor:
        """The projection of it that all blocks share.  Raises ``ValueError`` where each has its own."""
        raise ValueError(
            f"the blocks of a {type(model).__name__} share no projection of the timestep's embedding: use a method "
            "without it, such as TeaCache(retention=False)"
        )

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        embedding = self.embedding(model, inputs)
        return self.projection(model, embedding) if projected else embedding

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        if self.converts_timesteps:  # rounded where the pipelines round: to the latents' dtype first
            timesteps = timesteps.to(inputs["hidden_states"].dtype)
        return super().modulations(model, inputs, self.timestep(timesteps), projected)
