"""One kind of call of a run: a stage, a branch, a shape.  Made when it is first seen; then only its inputs change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from .. import ops
from ..cache import Slot
from ..models.call import Stage


class Call:
    """What actions, stores and signals see of an invocation of the model, and how it is computed.

    ``branch`` 0 is the model's first call of a step (the conditional branch of two-call guidance), 1 its second;
    ``number`` counts the calls of all models.  With ``batched`` the rows are [unconditional; conditional].

    Attributes:
        inputs: the invocation's arguments; None between steps.
        x: the noisy latents [rows, ...] among them.
        half: first row of the conditional branch.
        large, small: the models of this part of the run.
        slots: what the method's stores hold for calls like this, by name.
        first: the call of the first branch of this stage, itself for that one.
        channels, pieces, channel_dim: where the latents' channels lie (``vaccel.planning.channels``).
        ops: the ops for its tensors, unchecked.
        execute: the place for captured graphs; None where functions simply run.
    """

    def __init__(
        self, run: Any, stage: Stage, branch: int, x: torch.Tensor, batched: bool, number: int = 0,
        before: Call | None = None,
    ):  # fmt: skip
        self.run, self.stage, self.branch, self.batched, self.number = run, stage, branch, batched, number
        self.x, self.inputs = x, None
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.half = len(x) // 2 if batched else 0
        self.forwards = 2 if batched else 1
        self.large, self.small = stage.large, stage.small
        self.buffers, self.execute = run.buffers, run.execute
        self.first = self if branch == 0 else run.calls_bound[stage.index, 0]
        self.key = (stage.index, branch, batched, self.half)
        self.ops = ops.inner(x.device, x.dtype) if before is None else before.ops
        self.channels = stage.large.channels(x)
        self.pieces = self.channels.pieces
        self.channel_dim = self.channels.axis % x.ndim if x.ndim > 1 else 0
        self.slots: dict[str, Any] = {}
        for store in run.stores:
            goes_on = store.crosses and before is not None
            self.slots[store.name] = store.carried(self, before) if goes_on else store.slot(self)
        self._sort(run.stores)
        self.signals = run.signals_computed
        self.condition: Any = None  # what it was conditioned by last; ``settled`` once that was so at two steps
        self.settled, self.kind = False, ""

    def _sort(self, stores: Sequence[Any]) -> None:
        large = [s for s in stores if s.model == "large"]
        self.residual = self.slots.get("large.blocks")
        self.states = self.slots.get("large.states")
        self.inside = self.residual is not None or self.states is not None
        self.step_slots = [self.slots[s.name] for s in large if s.phase == "step"]
        self.after_slots = [self.slots[s.name] for s in large if s.phase == "after"]
        self.step_begins = [s for s in self.slots.values() if type(s).begin is not Slot.begin]
        self.small_residual = self.slots.get("small.blocks")

    def executed(
        self, key: Hashable, function: Callable[[Any], Any], inputs: Any, overwritten: Sequence[torch.Tensor] = ()
    ) -> Any:
        """``function(inputs)``, captured under ``key`` where steps are."""
        return function(inputs) if self.execute is None else self.execute(key, function, inputs, overwritten)

    def compute(self) -> torch.Tensor:
        """The large model's output; every store and signal is renewed."""
        run, residual, kept, inputs = self.run, self.residual, self.states, self.inputs
        index, states = run.index, {}
        if kept is not None:
            states = kept.prepared(self)
        if self.execute is None:
            output = self._forward(inputs, states) if self.inside else self.large.full(inputs)
            for slot in self.step_slots:
                slot.fill(self, self.x, output)
                slot.step = index
        else:
            output = self._captured(inputs, states)
        run.record.large += self.forwards
        if residual is not None:
            residual.step = index
            residual.text = self.large.encoder_shape(inputs) if self.large.carries_text else None
        if kept is not None and states:
            kept.wrote(self, states)
            if self.branch == 0:
                kept.full = index
        if output.dtype != self.dtype:  # a model that answers in another precision than it is asked in
            self.ops = ops.inner(self.device, None)
        for slot in self.after_slots:
            slot.after(self, output)
        if self.signals and self.stage is run.first_call.stage:  # what a step shows is of one model
            for signal in self.signals:
                signal.computed(self, output)
        return output

    def _forward(self, inputs: Any, states: dict[int, Any]) -> torch.Tensor:
        return self.large.recording(inputs, self.residual, states)

    def _captured(self, inputs: Any, states: dict[int, Any]) -> torch.Tensor:
        """A forward and what the stores make of it, as one step function."""

        def step(given: Any) -> torch.Tensor:
            output, x = self._forward(given, states), self.large.latents(given)
            for slot in self.step_slots:
                slot.fill(self, x, output)
            return output

        unmade = self.residual is not None and self.residual.buffer is None
        if unmade or any(state.hidden is None for state in states.values()):
            output = step(inputs)  # which makes the buffers, at addresses that can be captured from then on
        else:
            output = self.execute(("large", self.key), step, inputs, [state.hidden for state in states.values()])
        for slot in self.step_slots:
            if slot.buffer is None:  # a captured step was replayed: it wrote where it was captured
                slot.buffer = self.buffers.of(slot.key)
            slot.step = self.run.index
        return output

    def compute_small(self) -> torch.Tensor:
        """The small model's output, of every branch in the call."""
        small, residual = self.small, self.small_residual
        if residual is not None:

            def step(given: Any) -> torch.Tensor:
                return small.recording(given, residual, {})

            unmade = residual.buffer is None
            output = step(self.inputs) if unmade else self.executed(("small", self.key), step, self.inputs)
            residual.step = self.run.index
        else:
            output = self.executed(("small", self.key), small.full, self.inputs)
        self.run.record.small += self.forwards
        return output
