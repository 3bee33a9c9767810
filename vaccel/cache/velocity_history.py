"""The velocities that a run computed last, of every branch by itself, and what is forecast from them.

A branch's velocities go on where another model takes over: they are about the latents, and all models of a run predict
the same thing of those.  Whether it is worth it to forecast across is for the calibration to say.
Kept as ``vaccel.planning.flow`` has them, so that one set of weights serves whatever the model predicts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..actions.weights import Weights
from .by_piece import combined
from .frequencies import low_frequencies
from .parked import store
from .store import Slot, Store


@dataclasses.dataclass(frozen=True)
class VelocityHistory(Store):
    """The last ``count`` velocities; ``banded`` keeps their low spatial frequencies beside them."""

    kind = "velocities"
    phase = "after"
    crosses = True

    count: int = 2
    banded: bool = False

    def slot(self, call: Any) -> Slot:
        return History(self, call)

    def carried(self, call: Any, before: Any) -> Slot:
        known = before.slots[self.name]
        return known if before.shape == call.shape else known.conditional(call, before.half)


class History(Slot):
    """The velocities of one branch, newest first.

    Attributes:
        steps: of which steps they are.
        same, at: what ``known`` has found, and how many steps the run had computed by then.
    """

    __slots__ = ("_call", "_lows", "_tensors", "at", "banded", "count", "same", "steps", "store")

    def __init__(self, store: VelocityHistory, call: Any):
        super().__init__(store.name, call)
        self.store, self.count, self.banded = store, store.count, store.banded
        self.steps: list[int] = []
        self.same, self.at = 0, -1
        self._tensors: list[torch.Tensor] = []
        self._lows: list[torch.Tensor] = []
        self._call = call

    def after(self, call: Any, output: torch.Tensor) -> None:
        """Keeps the velocity of a computed call in place of the oldest.

        Raises ``ValueError`` where frequencies are wanted of latents that have no rows and columns.
        """
        velocity = self._taken(self._tensors, output, "velocity")
        scales = call.run.flow.scales
        if scales is None:
            store(velocity, output)
        else:
            pair = scales[call.run.index]
            weights = call.buffers.constant(pair, output.device, lambda: torch.tensor(pair)[:, None, None])
            call.ops.linear_combination([output, call.x], weights, velocity, channel_dim=1 if output.ndim > 1 else 0)
        self.steps.insert(0, call.run.index)
        del self.steps[self.count :]
        self.at = -1
        self.step = call.run.index
        if self.banded:
            if not call.large.spatial:
                raise ValueError("weights by frequency need latents with rows and columns; these are packed")
            _low(velocity, self._taken(self._lows, velocity, "low"), call.buffers)

    def _taken(self, tensors: list[torch.Tensor], like: torch.Tensor, what: str) -> torch.Tensor:
        """A buffer for the newest: a further one, or the oldest one's."""
        make = self._call.buffers.like
        if len(tensors) == self.count:
            new = tensors.pop()
        else:
            new = make((*self.key, what, len(tensors)), like)
            if not tensors:  # the others with it: none is made in the middle of a run
                for age in range(1, self.count):
                    make((*self.key, what, age), like)
        tensors.insert(0, new)
        return new

    def conditional(self, call: Any, half: int) -> History:
        """The history of the conditional branch alone, whose rows begin at ``half`` of the batch with both."""
        made = History(self.store, call)
        made.steps, made.step = list(self.steps), self.step
        made._tensors, made._lows = [t[half:] for t in self._tensors], [t[half:] for t in self._lows]
        return made

    def known(self) -> int:
        """How many velocities are remembered, back to where a branch has other steps than those the run computed.

        That happens where guidance begins or pauses in the middle of a run; the same weights would not fit both.
        """
        computed, same = self._call.run.computed, 0
        for own, wanted in zip(self.steps, computed, strict=False):
            if own != wanted:
                break
            same += 1
        self.same, self.at = same, len(computed)
        return same

    def newer(self) -> bool:
        """Whether it has a velocity that is no older than the newest that the run computed."""
        return bool(self.steps) and self.steps[0] >= self._call.run.computed[0]

    def terms(self, weights: Weights, skip: int = 0) -> list[torch.Tensor]:
        """What is weighed, in the order of ``Weights.coefficients``."""
        count = weights.count
        if weights.values.shape[1] == 1:
            return self._tensors[skip : skip + count]
        return [t for age in range(skip, skip + count) for t in (self._tensors[age], self._lows[age])]

    @property
    def velocities(self) -> list[torch.Tensor]:
        """All that are remembered, newest first."""
        return self._tensors

    @property
    def newest(self) -> torch.Tensor:
        return self._tensors[0]

    def forecast(self, call: Any, weights: Weights) -> torch.Tensor:
        """The prediction [rows, ...] that a call of the current step is given."""
        banded = weights.values.shape[1] > 1
        terms = self.terms(weights) if banded else self._tensors[: weights.count]
        run = call.run
        scale = run.flow.scales
        if scale is not None:
            scale = scale[run.index]
            terms = [*terms, call.x]
        first = terms[0]
        out, key = torch.empty_like(first), (call.device, scale, False)
        coefficients = weights.tensors.get(key)
        if coefficients is None:
            coefficients = weights.coefficients(call.device, scale)
        if coefficients.shape[-1] == 1:
            axis = min(1, first.ndim - 1)
        elif call.pieces:
            return combined(call.ops.linear_combination, [terms], coefficients, call.pieces, out)
        else:
            axis = call.channel_dim
        call.ops.linear_combination(terms, coefficients, out, channel_dim=axis)
        return out


def _low(velocity: torch.Tensor, out: torch.Tensor, buffers: Any) -> None:
    """The low spatial frequencies of [..., rows, columns]."""
    rows, columns = (
        buffers.constant(("low", n), velocity.device, lambda n=n: torch.from_numpy(low_frequencies(n)).float())
        for n in velocity.shape[-2:]
    )
    out.copy_(rows @ velocity.float() @ columns)
