"""The hidden states after some blocks, for later steps to resume from (MixCache, arXiv 2508.12691)."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from .store import Slot, Store


class BlockState(NamedTuple):
    """Where the state after a block is kept: hidden [rows, tokens, width], text likewise where blocks carry it along.

    ``change`` [rows], fp32, is its relative L1 from what was there before.  Rows of a call from ``start`` on are kept.
    """

    hidden: torch.Tensor
    encoder: torch.Tensor | None
    change: torch.Tensor
    start: int = 0


@dataclasses.dataclass(frozen=True)
class BlockStates(Store):
    """The states after ``blocks`` (at quarters of the depth if not given), of the conditional branch or of "both"."""

    kind = "states"
    phase = "forward"
    inside = True

    blocks: tuple[int, ...] | None = None
    branches: str = "cond"

    def of(self, depth: int) -> tuple[int, ...]:
        """The blocks of a model that has so many."""
        if self.blocks is None:
            return tuple(sorted({k * depth // 4 for k in (1, 2, 3)}))
        return tuple(sorted(set(self.blocks)))

    def slot(self, call: Any) -> Slot:
        return States(self, call)

    def nbytes(self, plan: Any) -> int:
        both = self.branches == "both"
        inputs = {"hidden_states": plan.x if both else plan.sample}
        hidden, text = plan.stage.large.hidden_shape(inputs), plan.stage.large.encoder_shape(inputs)
        elements = torch.Size(hidden).numel() + (torch.Size(text).numel() if text is not None else 0)
        each = elements * plan.x.element_size() + 4 * hidden[0]
        return len(self.of(plan.stage.large.depth)) * each * (plan.calls if both else 1)


class States(Slot):
    """The states of one kind of call.

    Attributes:
        steps: block -> the step its state was last written at.
        full: the last step that was computed in full.
        changes: block -> relative L1 [B] of its conditional state from that of the step before, where both were
            computed; of the current step.
    """

    __slots__ = ("_parts", "both", "carries_text", "changes", "full", "numbers", "states", "steps", "text")

    def __init__(self, store: BlockStates, call: Any):
        super().__init__(store.name, call)
        self.both = store.branches == "both"
        self.numbers = store.of(call.large.depth) if call.branch == 0 or self.both else ()
        self.steps: dict[int, int] = {}
        self.full = -1
        self.states: dict[int, BlockState] = {}
        self._parts: dict[tuple[int, bool], dict[int, BlockState]] = {}  # of the states, as calls name them
        self.changes: dict[int, torch.Tensor] = {}
        self.text: tuple[int, ...] | None = None
        self.carries_text = call.large.carries_text

    def ready(self, call: Any = None, number: int = -1) -> bool:
        """Whether a call can resume after a block: its state was kept since the first branch's last full step."""
        if number not in self.steps or self.steps[number] < self.first.full:
            return False
        return call is None or not self.carries_text or self.text == call.large.encoder_shape(call.inputs)

    def begin(self) -> None:
        self.changes = {}

    def prepared(self, call: Any, *, after: int = -1, cond_only: bool = False) -> dict[int, BlockState]:
        """Where a call leaves its states; empty where it leaves none.

        Args:
            after: the block it resumes after; its state is there to be read, and only later ones are new.
            cond_only: the call's conditional rows alone go through the model.
        """
        if not self.numbers:
            return {}
        first = call.half if self.both and cond_only else 0  # of the buffer's rows
        start = call.half if not self.both and not cond_only else 0  # of the rows that go through the model
        text = call.large.encoder_shape(call.inputs) if self.carries_text else None
        if not self.states or text != self.text:
            self._allocate(call, text)
        if after < 0 and not first and not start:
            return self.states
        found = self._parts.get((after, cond_only))
        if found is None:
            found = self._parts[after, cond_only] = {
                n: BlockState(*(None if t is None else t[first:] for t in state[:3]), start)
                for n, state in self.states.items()
                if n >= after
            }
        return found

    def _allocate(self, call: Any, text: tuple[int, ...] | None) -> None:
        """Buffers for every block; those of a text of another length hold nothing any more."""
        rows = len(call.x) if self.both else len(call.x) - call.half
        hidden = call.large.hidden_shape(call.inputs)

        def buffer(what: str, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return call.buffers.empty((*self.key, what, number), shape, dtype, call.x.device)

        self.states = {
            n: BlockState(
                buffer("hidden", n, (rows, *hidden[1:]), call.x.dtype),
                None if text is None else buffer("text", n, (rows, *text[1:]), call.x.dtype),
                buffer("change", n, (rows,), torch.float32),
            )
            for n in self.numbers
        }
        self.text, self.steps, self._parts = text, {}, {}

    def wrote(self, call: Any, states: dict[int, BlockState] | None = None, after: int = -1) -> None:
        """The call is over: the states behind ``after`` are of this step."""
        index = call.run.index
        for number in self.states if states is None else states:
            if number > after:
                if call.branch == 0 and self.steps.get(number) == index - 1:
                    change = self.states[number].change
                    self.changes[number] = change[call.half :] if self.both else change
                self.steps[number] = index
        self.step = index
