"""The hidden states after some blocks, for later steps to resume from (MixCache, arXiv 2508.12691)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from .parked import store
from .store import Slot, Store


class BlockState:
    """Where the state after a block is kept.

    Attributes:
        tensors: (hidden [rows, tokens, width], text likewise where blocks carry it along, change [rows] in fp32: its
            relative L1 from what was there before); Nones until the first state is there.
        start: rows of a call from there on are kept.
        rows: how many a call has.
    """

    __slots__ = ("_make", "rows", "start", "tensors")

    def __init__(
        self,
        make: Callable[..., Any] | None,
        start: int,
        rows: int,
        tensors: tuple | None = None,
    ):
        self._make, self.start, self.rows = make, start, rows
        self.tensors: tuple[torch.Tensor | None, ...] = tensors or (None, None, None)

    @property
    def hidden(self) -> torch.Tensor | None:
        return self.tensors[0]

    @property
    def change(self) -> torch.Tensor | None:
        return self.tensors[2]

    def keep(self, hidden: torch.Tensor, encoder: torch.Tensor | None) -> None:
        """The first state: buffers are made like it, and it is copied in."""
        self.tensors = self._make(hidden, encoder)
        for buffer, tensor in zip(self.tensors, (hidden, encoder), strict=False):
            if buffer is not None:
                store(buffer, tensor)

    def alone(self, rows: int) -> BlockState:
        """The same, not made yet, for calls that have just the rows that are kept."""

        def make(hidden: torch.Tensor, encoder: torch.Tensor | None) -> tuple:
            self.tensors = self._make(hidden, encoder)
            return self.tensors

        return BlockState(make, 0, rows)

    def part(self, first: int, start: int) -> BlockState:
        """The same storage from its row ``first`` on, for calls that have just those rows from ``start`` on."""
        each = len(self.hidden) // len(self.change)  # blocks of some models see frames as rows
        hidden, encoder, change = self.tensors
        cut = hidden[first * each :], None if encoder is None else encoder[first * each :], change[first:]
        return BlockState(None, start, len(change) - first + start, cut)


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


class States(Slot):
    """The states of one kind of call.

    Attributes:
        steps: block -> the step its state was last written at.
        full: the last step that was computed in full.
        changes: block -> relative L1 [B] of its conditional state from that of the step before, where both were
            computed; of the current step.
    """

    __slots__ = ("_parts", "both", "carries_text", "changes", "full", "made", "numbers", "states", "steps", "text")

    def __init__(self, store: BlockStates, call: Any):
        super().__init__(store.name, call)
        self.both = store.branches == "both"
        self.numbers = store.of(call.large.depth) if call.branch == 0 or self.both else ()
        self.steps: dict[int, int] = {}
        self.full = -1
        self.states: dict[int, BlockState] = {}
        self.made = False  # whether their buffers are there
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
            self._begin(call, text)
        if after < 0 and not first and not cond_only:
            return self.states
        if not self.made and any(state.hidden is None for state in self.states.values()):
            return {} if first else {n: s.alone(len(call.x) - call.half) for n, s in self.states.items()}
        found = self._parts.get((after, cond_only))
        if found is None:
            found = self._parts[after, cond_only] = {
                n: state.part(first, start) for n, state in self.states.items() if n >= after
            }
        return found

    def _begin(self, call: Any, text: Any) -> None:
        """Nothing is kept yet, or it was beside a text of another length: buffers are made with the first states."""
        rows = len(call.x) if self.both else len(call.x) - call.half
        start = 0 if self.both else call.half

        fits = (call.shape, call.dtype, rows, text, self.numbers, call.large.inside(call.x.device))
        known = call.buffers.fit(self.key, fits)  # an earlier run of the same kind has made them

        def state(number: int) -> BlockState:
            names = [(*self.key, what, number) for what in ("hidden", "text", "change")]

            def make(hidden: torch.Tensor, encoder: torch.Tensor | None) -> tuple:
                call.buffers.made(self.key, fits)
                change = call.buffers.empty(names[2], (rows,), torch.float32, hidden.device)
                kept = None if encoder is None else call.buffers.large(names[1], encoder)
                return call.buffers.large(names[0], hidden), kept, change

            there = tuple(call.buffers.held(name) for name in names) if known else None
            return BlockState(make, start, len(call.x), there)

        self.states = {n: state(n) for n in self.numbers}
        self.text, self.steps, self._parts, self.made = text, {}, {}, known

    def wrote(self, call: Any, states: dict[int, BlockState] | None = None, after: int = -1) -> None:
        """The call is over: the states behind ``after`` are of this step."""
        index = call.run.index
        self.made = self.made or bool(states)
        for number in self.states if states is None else states:
            if number > after:
                if call.branch == 0 and self.steps.get(number) == index - 1:
                    change = self.states[number].change
                    self.changes[number] = change[call.half :] if self.both else change
                self.steps[number] = index
        self.step = index
