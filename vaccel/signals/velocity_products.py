"""How alike the velocities are that were computed last."""

from __future__ import annotations

from typing import Any

import torch

from .signal import Signal


class VelocityProducts(Signal):
    """Inner products [n, n] of the conditional branch's newest velocities, fp32, over all rows, newest first.

    Needs ``VelocityHistory`` among the stores, whose count n is.
    """

    name = "velocity_products"
    early = True

    def value(self, following: Any) -> torch.Tensor | None:
        if not self.run.action.is_full:
            return None
        call = self.run.first_call
        history = call.slots["large.velocities"]
        rows = [t[call.half :] for t in history.velocities] if call.half else history.velocities
        known = torch.flatten(torch.stack(rows), 1)
        if known.dtype != torch.float32:
            known = known.float()
        return torch.nn.functional.linear(known, known)
