"""The latents that the solver has made of a full step's prediction."""

from __future__ import annotations

from typing import Any

import torch

from .signal import Signal


class Latents(Signal):
    """The latents that enter the following step, [B, ...]; those that enter a step itself are ``step.latents``."""

    name = "latents"

    def value(self, following: Any) -> torch.Tensor | None:
        return None if following is None else following.x[following.half :]
