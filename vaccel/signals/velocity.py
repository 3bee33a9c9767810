"""The guided velocity of a full step (``vaccel.planning.flow``)."""

from __future__ import annotations

from typing import Any

import torch

from .signal import Signal


class Velocity(Signal):
    """[B, ...]; valid until the next full step.  Needs ``VelocityHistory`` among the stores."""

    name = "velocity"
    guided = True

    def __init__(self, run: Any):
        super().__init__(run)
        self.calls: list[Any] = []

    def computed(self, call: Any, output: torch.Tensor) -> None:
        if call.branch == 0:
            self.calls = []
        self.calls.append(call)

    def value(self, following: Any) -> torch.Tensor:
        uncond, cond = both(self.calls, lambda history: [history.newest])
        if uncond is None:
            return cond[0]
        call, run = self.calls[0], self.run
        out = run.buffers.like("velocity.guided", cond[0])
        guidance = run.guidance(call.stage.index)
        if run.flow.scales is None:  # the pipeline's own way, which may rescale
            return call.large.guided(cond[0], uncond[0], guidance, out)
        call.ops.cfg_combine(cond[0], uncond[0], guidance, out)
        return out


def both(calls: list[Any], terms: Any) -> tuple[list | None, list]:
    """(unconditional terms or None, conditional terms) of a step's calls; ``terms`` takes a call's history."""
    histories = [call.slots["large.velocities"] for call in calls]
    if calls[0].batched:
        halves = [t.chunk(2) for t in terms(histories[0])]
        return [u for u, _ in halves], [c for _, c in halves]
    two = len(calls) > 1 and calls[0].shape == calls[1].shape
    return (terms(histories[1]) if two else None), terms(histories[0])
