"""What families with packed latents share: tokens instead of rows and columns."""

from __future__ import annotations

from torch import nn

from .family import Family
from .layout import Layout, Part


class Packed(Family):
    """Latents [B, tokens, C], converted timesteps; what a call answers is of the tokens it was given."""

    channel_axis = -1
    spatial = False
    converts_timesteps = True

    def layout(self, model: nn.Module) -> Layout | None:
        return self.static(Part(0, "hidden_states"))
