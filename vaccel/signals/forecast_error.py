"""By how much a full step's velocity differs from what would have been forecast for it."""

from __future__ import annotations

from typing import Any

import torch

from ..cache.by_piece import combined
from .signal import Signal
from .velocity import Velocity, both


class ForecastError(Signal):
    """Norms [B] of the difference from the forecast that ``Policy.expects`` gave the weights of; None where it gave
    none, or too little was remembered."""

    name = "forecast_error"
    guided = True
    requires = (Velocity,)

    def value(self, following: Any) -> torch.Tensor | None:
        run, calls = self.run, self.run.signal(Velocity).calls
        weights = run.policy.expects(run.index)
        if weights is None or any(c.slots["large.velocities"].known() <= weights.count for c in calls):
            return None
        uncond, cond = both(calls, lambda history: [history.newest, *history.terms(weights, skip=1)])
        call = calls[0]
        coefficients = weights.coefficients(cond[0].device, against=True)
        axis = call.channel_dim if coefficients.shape[-1] > 1 else min(1, cond[0].ndim - 1)
        out = run.buffers.like("velocity.guided", cond[0])
        w = () if uncond is None else (run.guidance(call.stage.index),)
        if call.pieces and coefficients.shape[-1] > 1:
            op = call.ops.linear_combination_guided if w else call.ops.linear_combination
            combined(op, [cond, uncond] if w else [cond], coefficients, call.pieces, out, *w)
        elif uncond is None:
            call.ops.linear_combination(cond, coefficients, out, channel_dim=axis)
        else:
            call.ops.linear_combination_guided(cond, uncond, coefficients, *w, out, channel_dim=axis)
        return call.ops.norm(out)
