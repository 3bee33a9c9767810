"""The velocities that a run computed last, of every branch by itself, and what is forecast from them.

Kept as ``vaccel.planning.flow`` has them, so that one set of weights serves whatever the model predicts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..actions.weights import Weights
from .frequencies import low_frequencies
from .store import Slot, Store


@dataclasses.dataclass(frozen=True)
class VelocityHistory(Store):
    """The last ``count`` velocities; ``banded`` keeps their low spatial frequencies beside them."""

    kind = "velocities"
    phase = "after"

    count: int = 2
    banded: bool = False

    def slot(self, call: Any) -> Slot:
        return History(self, call)

    def nbytes(self, plan: Any) -> int:
        return self.count * (1 + self.banded) * plan.calls * plan.nbytes(plan.x)


class History(Slot):
    """The velocities of one kind of call, newest first.

    Attributes:
        steps: of which steps they are.
    """

    __slots__ = ("_call", "_lows", "_tensors", "banded", "count", "steps")

    def __init__(self, store: VelocityHistory, call: Any):
        super().__init__(store.name, call)
        self.count, self.banded = store.count, store.banded
        self.steps: list[int] = []
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
            velocity.copy_(output)
        else:
            pair = scales[call.run.index]
            weights = call.buffers.constant(pair, output.device, lambda: torch.tensor(pair)[:, None, None])
            call.ops.linear_combination([output, call.x], weights, velocity, channel_dim=1 if output.ndim > 1 else 0)
        self.steps.insert(0, call.run.index)
        del self.steps[self.count :]
        self.step = call.run.index
        if self.banded:
            if not call.large.spatial:
                raise ValueError("weights by frequency need latents with rows and columns; these are packed")
            _low(velocity, self._taken(self._lows, velocity, "low"), call.buffers)

    def _taken(self, tensors: list[torch.Tensor], like: torch.Tensor, what: str) -> torch.Tensor:
        """A buffer for the newest: a further one, or the oldest one's."""
        if len(tensors) < self.count:
            new = self._call.buffers.like((*self.key, what, len(tensors)), like)
        else:
            new = tensors.pop()
        tensors.insert(0, new)
        return new

    def known(self) -> int:
        """How many velocities are remembered, back to where a branch has other steps than the first one.

        That happens where guidance begins or pauses in the middle of a run; the same weights would not fit both.
        """
        own, first = self.steps, self.first.steps
        if own is first or own == first:
            return len(own)
        same = [a == b for a, b in zip(own, first, strict=False)]
        return same.index(False) if False in same else len(same)

    def terms(self, weights: Weights, skip: int = 0) -> list[torch.Tensor]:
        """What is weighed, in the order of ``Weights.coefficients``."""
        count = weights.count
        if weights.values.shape[1] == 1:
            return self._tensors[skip : skip + count]
        return [t for age in range(skip, skip + count) for t in (self._tensors[age], self._lows[age])]

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
        axis = call.channel_dim if coefficients.shape[-1] > 1 else min(1, first.ndim - 1)
        call.ops.linear_combination(terms, coefficients, out, channel_dim=axis)
        return out


def _low(velocity: torch.Tensor, out: torch.Tensor, buffers: Any) -> None:
    """The low spatial frequencies of [..., rows, columns]."""
    rows, columns = (
        buffers.constant(("low", n), velocity.device, lambda n=n: torch.from_numpy(low_frequencies(n)).float())
        for n in velocity.shape[-2:]
    )
    out.copy_(rows @ velocity.float() @ columns)
