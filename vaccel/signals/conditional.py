"""The conditional branch's outputs of the last two full steps, before guidance."""

from __future__ import annotations

from typing import Any

import torch

from ..cache.parked import store
from .signal import Signal


class Conditional(Signal):
    """(of the newest full step, of the one before it or None), [B, ...]; the only branch's in a loop without guidance.

    They are written in turn: the newest is the older one after the next full step, and never copied.
    """

    name = "conditional"

    def __init__(self, run: Any):
        super().__init__(run)
        self.newest: torch.Tensor | None = None
        self.before: torch.Tensor | None = None

    def computed(self, call: Any, output: torch.Tensor) -> None:
        if call.branch == 0:
            rows, like = output[call.half :] if call.half else output, call.buffers.like
            first, second = like("conditional.0", rows), like("conditional.1", rows)
            known = self.newest is first or self.newest is second  # else latents are of another shape now
            self.before = self.newest if known else None
            self.newest = store(second if self.newest is first else first, rows)

    def value(self, following: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.newest, self.before
