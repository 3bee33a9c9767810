"""The difference of the branches, u - c, [B, ...]."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .store import Slot, Store


@dataclasses.dataclass(frozen=True)
class GuidanceDelta(Store):
    """u - c of the last full step; both branches share it.  Needs ``LastOutput`` beside it."""

    kind = "delta"
    phase = "after"

    def slot(self, call: Any) -> Slot:
        return _Slot(self.name, call) if call.branch == 0 else call.first.slots[self.name]


class _Slot(Slot):
    __slots__ = ("full",)

    def __init__(self, name: str, call: Any):
        super().__init__(name, call)
        self.key = (name, call.stage.index)
        self.full = -1  # the last full step of the conditional branch

    def ready(self) -> bool:
        """Whether it is not older than the last step that the conditional branch was computed at in full."""
        return self.step >= 0 and self.step >= self.full

    def after(self, call: Any, output: torch.Tensor) -> None:
        if call.branch == 0:
            self.full = call.run.index
        if call.batched:
            uncond, cond = output.chunk(2)
        elif call.branch == 1 and not call.first.batched:
            cond, uncond = call.first.slots["large.last"].buffer, output
        else:
            return
        if uncond.shape != cond.shape:  # a second call of other rows is no unconditional branch
            return
        if self.buffer is None:
            self.buffer = call.buffers.like(self.key, cond)
        torch.sub(uncond, cond, out=self.buffer)
        self.step = call.run.index
