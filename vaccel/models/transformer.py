"""A described model as the engine calls it: in full, storing or reusing the residual of its blocks, from a state on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..cache.block_residual import Kept
from ..cache.block_states import BlockState
from .compiling import Compiler
from .family import Family, Inputs
from .generic import Generic
from .views import View, recording_view, resuming_view, reusing_view


class Transformer(Generic):
    """A denoiser whose family says where its blocks are; views are called directly where no hooks sit on it."""

    described = True

    def __init__(self, model: nn.Module, family: Family, *, small: bool = False, compiler: Compiler | None = None):
        super().__init__(model, family, small=small, compiler=compiler)
        #: Whether text goes through the blocks beside the hidden states.
        self.carries_text = family.carries_text
        self._reuses_other = type(family).reusing_inputs is not Family.reusing_inputs
        self._skips = type(family).skipped is not Family.skipped

    def encoder_shape(self, inputs: Inputs) -> tuple[int, ...] | None:
        return self.family.encoder_shape(self.model, inputs)

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        with self._lock:
            return sum(len(getattr(self.model, one.attribute)) for one in self.family.blocks)

    def recording(self, inputs: Inputs, residual: Any, states: dict[int, BlockState]) -> torch.Tensor:
        """A forward that leaves the residual of its blocks and the states after some of them behind, where asked to.

        Args:
            residual: the buffer that it goes to; or what has a ``buffer``, and ``allocate`` to make one where there is
                none.
            states: where the states after blocks go, by their numbers.
        """
        numbers, stores = tuple(states), residual is not None
        if not numbers and not stores:
            return self.full(inputs)
        if isinstance(residual, torch.Tensor):
            residual = Kept(residual)
        skipped, inputs = self.family.skipped(self.model, inputs) if self._skips else ((), inputs)
        fresh = (stores and residual.buffer is None) or (numbers and states[numbers[0]].tensors[0] is None)

        def make(model: nn.Module, family: Family) -> View:
            return recording_view(model, family, numbers, stores, skipped)

        def prepare(view: View) -> None:
            if stores:
                view.set_buffer(residual.buffer, residual.allocate)
            if numbers:
                view.set_states(states)

        return self._viewed(("recording", numbers, stores, skipped), make, inputs, prepare, eagerly=fresh)

    def reusing(self, inputs: Inputs, buffer: torch.Tensor) -> torch.Tensor:
        """Embeddings and head, with the residual in ``buffer`` in the blocks' place."""
        if self._reuses_other:
            inputs = self.family.reusing_inputs(self.model, inputs)
        if self._skips:
            inputs = self.family.skipped(self.model, inputs)[1]
        view = self._views.get("reusing")
        if view is None or not self.bare or self.is_small or self.compiler is not None:
            return self._viewed("reusing", reusing_view, inputs, lambda view: view.set_buffer(buffer))
        for block in view.buffered:
            block.__dict__["buffer"] = buffer
        answer, kept = view.call(**inputs), self.layout
        return answer[0] if kept.single and len(answer) == 1 and not kept.cuts else kept.pack(answer, inputs)

    def resuming(self, inputs: Inputs, after: int, states: dict[int, BlockState]) -> torch.Tensor:
        """What the blocks behind ``after`` and the head make of the state kept there."""
        skipped, inputs = self.family.skipped(self.model, inputs) if self._skips else ((), inputs)
        numbers = tuple(states)
        view = self._views.get(("resuming", after, numbers, skipped))
        if view is not None and self.bare and not self.is_small and self.compiler is None:
            view.set_states(states)
            answer, kept = view.call(**inputs), self.layout
            return answer[0] if kept.single and len(answer) == 1 and not kept.cuts else kept.pack(answer, inputs)

        def make(model: nn.Module, family: Family) -> View:
            return resuming_view(model, family, after, numbers, skipped)

        return self._viewed(("resuming", after, numbers, skipped), make, inputs, lambda view: view.set_states(states))

    def _viewed(self, name: Any, make: Any, inputs: Inputs, prepare: Any, *, eagerly: bool = False) -> torch.Tensor:
        given = self.family.small_inputs(self.model, inputs) if self.is_small else inputs
        answer = self._through(name, make, given, prepare, eagerly=eagerly)
        if self.layout is None or (self.is_small and not self.layout.fits(inputs)):
            self.layout = self._learnt(inputs, answer)
        return self.layout.pack(answer, inputs)
