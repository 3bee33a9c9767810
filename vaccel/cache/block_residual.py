"""What the stack of blocks has added to its input: hidden states, [rows, tokens, width] a branch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

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
        return _Slot(self.name, call)

    def nbytes(self, plan: Any) -> int:
        model = plan.stage.large if self.of == "large" else plan.stage.small
        elements = torch.Size(model.hidden_shape({"hidden_states": plan.x})).numel()
        return plan.calls * elements * plan.x.element_size()


class _Slot(Slot):
    __slots__ = ()

    def prepare(self, call: Any) -> None:
        if self.buffer is None:
            model = call.large if self.key[0] == "large.blocks" else call.small
            shape = model.hidden_shape(call.inputs)
            self.buffer = call.buffers.empty(self.key, shape, call.x.dtype, call.x.device)
