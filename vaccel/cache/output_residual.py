"""v - x of the whole model, [rows, ...] a branch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .store import Slot, Store


@dataclasses.dataclass(frozen=True)
class OutputResidual(Store):
    """The residual of the output."""

    kind = "output"

    def slot(self, call: Any) -> Slot:
        return _Slot(self.name, call)


class _Slot(Slot):
    __slots__ = ()

    def fill(self, call: Any, x: torch.Tensor, output: torch.Tensor) -> None:
        if self.buffer is None:
            self.buffer = call.buffers.like(self.key, output)
        torch.sub(output, x, out=self.buffer)
