"""The small model's conditional output at a rescaled step."""

from __future__ import annotations

from typing import Any

import torch

from .signal import Signal


class SmallOutput(Signal):
    """[B, ...]; None at steps where the small model did not run beside the large one's residual."""

    name = "small"
    early = True
    any_step = True

    def value(self, following: Any) -> torch.Tensor | None:
        return self.run.shared.get("small")
