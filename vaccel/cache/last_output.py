"""The last output itself, [rows, ...] a branch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .parked import store
from .store import Slot, Store


@dataclasses.dataclass(frozen=True)
class LastOutput(Store):
    """The last output, computed or made of a computed branch and the guidance delta."""

    kind = "last"

    def slot(self, call: Any) -> Slot:
        return _Slot(self.name, call)


class _Slot(Slot):
    __slots__ = ("run",)

    def __init__(self, name: str, call: Any):
        super().__init__(name, call)
        self.run = call.run

    def written_now(self) -> bool:
        """Whether the first branch's output of the current step is there."""
        return self.first.step == self.run.index

    def fill(self, call: Any, x: torch.Tensor, output: torch.Tensor) -> None:
        if self.buffer is None:
            self.buffer = call.buffers.like(self.key, output)
        store(self.buffer, output)
