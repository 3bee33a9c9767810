"""The estimate of x_0 that a full step's prediction stands for."""

from __future__ import annotations

from typing import Any

import torch

from .prediction import Prediction
from .signal import Signal


class Denoised(Signal):
    """x_0 as the scheduler would have it, [B, ...]."""

    name = "denoised"
    requires = (Prediction,)

    def __init__(self, run: Any):
        super().__init__(run)
        self.entered: torch.Tensor | None = None

    def computed(self, call: Any, output: torch.Tensor) -> None:
        if call.branch == 0:
            self.entered = call.buffers.keep("signal.latents", call.x[call.half :])

    def value(self, following: Any) -> torch.Tensor:
        prediction = self.run.signal(Prediction).value(following)
        return self.run.denoise(prediction, self.entered, self.run.index)
