"""The states after some blocks, kept on the way through a computed step for later ones to resume from (seed 002)."""

from __future__ import annotations

from typing import Any

import torch

from ..actions import Branches
from ..models.transformer import Call
from ..models.views import BlockState
from .buffers import Buffers


class States:
    """Which states are kept where, and which of them are new; one object a run.

    Args:
        numbers: after which blocks.
        branches: "cond" keeps those of the conditional branch, "both" those of either.
    """

    def __init__(self, buffers: Buffers, numbers: tuple[int, ...], branches: Branches):
        self.buffers, self.numbers, self.both = buffers, numbers, branches == "both"
        self._kept: set[tuple[int, int, int]] = set()  # (stage, branch, block) with something of this run
        self._ran: dict[tuple[int, int], int] = {}  # (stage, block): when the conditional branch last ran it
        #: Relative L1 [B] of a block's conditional state from that of the step before, where both were computed.
        self.changes: dict[int, torch.Tensor] = {}

    def ready(self, call: Call, number: int) -> bool:
        """Whether the call can resume after a block."""
        return (call.stage.index, call.branch, number) in self._kept

    def kept(self, index: int, call: Call, *, after: int = -1, cond_only: bool = False) -> dict[int, BlockState]:
        """Where step ``index``'s call leaves its states; empty where it leaves none.

        Args:
            after: the block it resumes after; its state is there to be read, and only later ones are new.
            cond_only: the call's conditional rows alone go through the model.
        """
        if not self.numbers or (call.branch == 1 and not self.both):
            return {}
        stage, large = call.stage.index, call.stage.large
        rows = len(call.x) if self.both else len(call.x) - call.half
        first = call.half if self.both and cond_only else 0  # of the buffer's rows
        start = call.half if not self.both and not cond_only else 0  # of the rows that go through the model
        hidden, encoder = large.hidden_shape(call.inputs), large.encoder_shape(call.inputs)
        found = {}
        for number in self.numbers:
            if number < after:
                continue
            state = (
                self._buffer("hidden", call, number, (rows, *hidden[1:]), call.x.dtype),
                None if encoder is None else self._buffer("text", call, number, (rows, *encoder[1:]), call.x.dtype),
                self._buffer("change", call, number, (rows,), torch.float32),
            )
            found[number] = BlockState(*(None if t is None else t[first:] for t in state), start)
            if number > after:
                self._kept.add((stage, call.branch, number))
                if call.branch == 0:
                    if self._ran.get((stage, number)) == index - 1:
                        self.changes[number] = state[2][call.half :] if self.both else state[2]
                    self._ran[stage, number] = index
        return found

    def _buffer(self, what: str, call: Call, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        key: Any = ("large.states", what, call.stage.index, call.branch, number)
        return self.buffers.empty(key, shape, dtype, call.x.device)


def contents(states: dict[int, BlockState]) -> list[torch.Tensor]:
    """What a step reads before it overwrites it."""
    return [state.hidden for state in states.values()]
