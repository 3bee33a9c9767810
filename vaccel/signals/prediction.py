"""The guided output of a full step."""

from __future__ import annotations

from typing import Any

import torch

from .branches import Branches
from .signal import Signal


class Prediction(Signal):
    """What the pipeline makes of both branches' outputs, [B, ...]; the only one where a loop has no guidance."""

    name = "prediction"
    guided = True
    requires = (Branches,)

    def value(self, following: Any) -> torch.Tensor:
        branches = self.run.signal(Branches)
        cond, uncond = branches.value(following)
        if uncond is None:
            return cond
        stage = branches.stage
        out = self.run.buffers.like("signal.guided", cond)
        return stage.large.guided(cond, uncond, self.run.guidance(stage.index), out)
