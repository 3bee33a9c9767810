"""What the stack of blocks has added to its input: hidden states, [rows, tokens, width] a branch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .parked import Parked
from .store import Slot, Store


@dataclasses.dataclass(frozen=True)
class BlockResidual(Store):
    """The residual of the block stack, of the ``of`` model ("large" or "small")."""

    kind = "blocks"
    phase = "forward"
    inside = True

    of: str = "large"

    @property
    def model(self) -> str:
        return self.of

    def slot(self, call: Any) -> Slot:
        return _Slot(self.name, call, call.large if self.of == "large" else call.stage.small)


class Kept:
    """A residual on its own, for whoever keeps residuals outside a run; made where blocks are entered."""

    def __init__(self, buffer: torch.Tensor | None = None) -> None:
        self.buffer = buffer

    def allocate(self, hidden: torch.Tensor) -> torch.Tensor:
        self.buffer = torch.empty_like(hidden)
        return self.buffer


class _Slot(Slot):
    __slots__ = ("buffers", "fits", "text")

    def __init__(self, name: str, call: Any, model: Any):
        super().__init__(name, call)
        self.buffers, self.text = call.buffers, None  # the text's shape that the residual was computed beside
        self.fits = (call.shape, call.dtype, model.inside(call.x.device))
        if self.buffers.fit(self.key, self.fits):  # an earlier run of the same kind has made it
            self.buffer = self.buffers.held(self.key)

    def allocate(self, hidden: torch.Tensor) -> torch.Tensor | Parked:
        """The buffer for residuals like ``hidden``, which enters the blocks."""
        self.buffer = self.buffers.large(self.key, hidden)
        self.buffers.made(self.key, self.fits)
        return self.buffer
