"""What image families share: channels, rows and columns, in that order; square patches of them are the tokens."""

from __future__ import annotations

from torch import nn

from .family import Family
from .layout import Layout, Part


class Picture(Family):
    """Latents [B, C, H, W]; conditions may follow them along the channels, a learned variance the prediction."""

    def answered(self, model: nn.Module) -> int:
        """Channels of an answer."""
        return model.config.out_channels or model.config.in_channels

    def layout(self, model: nn.Module) -> Layout | None:
        given, answered = model.config.in_channels, self.answered(model)
        return self.static(
            Part(0, "hidden_states", axis=1, size=min(given, answered), out_axis=1, out_size=given * (answered > given))
        )
