"""What video families share: channels, frames, rows and columns, in that order; patches of them are the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .family import Family, Inputs
from .layout import Layout, Part


class Video(Family):
    """Latents [B, C, F, H, W]; conditions may follow them along the channels, a learned variance the prediction."""

    frame_axis = 2

    def layout(self, model: nn.Module) -> Layout | None:
        given = model.config.in_channels
        answered = model.config.out_channels or given
        return self.static(
            Part(0, "hidden_states", axis=1, size=min(given, answered), out_axis=1, out_size=given * (answered > given))
        )

    def patch(self, model: nn.Module) -> tuple[int, int, int]:
        """Frames, rows and columns of a token."""
        size, config = model.config.patch_size, model.config
        return (getattr(config, "patch_size_t", None) or 1, size, size) if isinstance(size, int) else tuple(size)


def adaln_embedding(embedder: Callable[..., Any], inputs: Inputs, projected: bool) -> torch.Tensor:
    """The embedding of a call's timesteps, of whatever shape, by one that gives (projection, embedding)."""
    timestep = inputs["timestep"]
    both = embedder(timestep.flatten(), hidden_dtype=inputs["hidden_states"].dtype)
    return both[0 if projected else 1].unflatten(0, timestep.shape)
