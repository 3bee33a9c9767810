"""The velocities that a run computed last, and what is forecast from them; of every branch by itself.

Kept as ``vaccel.flow`` has them, so that one set of weights serves whatever the model predicts.
"""

from __future__ import annotations

import torch

from .. import ops
from ..actions import Weights
from ..models.transformer import Call, Stage
from ..planning.flow import Flow
from ..planning.gram import low_frequencies
from .buffers import Buffers


class Past:
    """A run's remembered velocities.

    Args:
        flow: the run's levels and scales.
        count: how many velocities are kept of a branch.
        banded: whether their low spatial frequencies are kept beside them.
    """

    def __init__(self, buffers: Buffers, flow: Flow, count: int, banded: bool):
        self.buffers, self.flow, self.count, self.banded = buffers, flow, count, banded
        # By stage and branch: where they lie and of which step they are, newest first.
        self._slots: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def remember(self, index: int, call: Call, prediction: torch.Tensor) -> None:
        """Keeps the velocity [rows, ...] of a computed call in place of the oldest.

        Raises ``ValueError`` where frequencies are wanted of latents that have no rows and columns.
        """
        slots = self._slots.setdefault((call.stage.index, call.branch), [])
        slot = len(slots) if len(slots) < self.count else slots.pop()[0]
        slots.insert(0, (slot, index))
        key = ("past", slot, call.stage.index, call.branch)
        if self.flow.scales is None:
            velocity = self.buffers.keep(key, prediction)
        else:
            velocity = self.buffers.like(key, prediction)
            weights = self._constant(self.flow.scales[index], prediction.device)
            ops.linear_combination([prediction, call.x], weights, out=velocity)
        if self.banded:
            if not call.stage.large.spatial:
                raise ValueError("weights by frequency need latents with rows and columns; these are packed")
            _low(velocity, self.buffers.like(("past.low", *key[1:]), velocity), self.buffers)

    def known(self, stage: Stage, branch: int) -> int:
        """How many velocities are remembered, back to where a branch has other steps than the first one.

        That happens where guidance begins or pauses in the middle of a run; the same weights would not fit both.
        """
        own = self._slots.get((stage.index, branch), ())
        first = own if branch == 0 else self._slots.get((stage.index, 0), ())
        if own is first:
            return len(own)
        same = [a[1] == b[1] for a, b in zip(own, first, strict=False)]
        return same.index(False) if False in same else len(same)

    def elements(self, stage: Stage) -> int:
        """Of one sample's velocity."""
        return self._at(stage, 0, 0)[0].numel()

    def forecast(self, index: int, call: Call, weights: Weights) -> torch.Tensor:
        """The prediction [rows, ...] that a call of step ``index`` is given."""
        large = call.stage.large
        terms = self._terms(weights, call.stage, call.branch, skip=0)
        scale = None if self.flow.scales is None else self.flow.scales[index]
        if scale is not None:
            terms.append(call.x)
        coefficients = self._coefficients(weights, scale, terms[0].device)
        return ops.linear_combination(terms, coefficients, channel_dim=_axis(large.channel_axis, coefficients))

    def velocity(self, stage: Stage, guidance: float, batched: bool, two: bool) -> torch.Tensor:
        """The guided velocity [B, ...] that was remembered last; valid until the next one is."""
        uncond, cond = self._both(stage, batched, two, lambda b: [self._at(stage, b, 0)])
        if uncond is None:
            return cond[0]
        out = self.buffers.like("past.guided", cond[0])
        if self.flow.scales is None:  # the pipeline's own way, which may rescale
            return stage.large.guided(cond[0], uncond[0], guidance, out)
        return ops.cfg_combine(cond[0], uncond[0], guidance, out=out)

    def surprise(self, stage: Stage, weights: Weights, guidance: float, batched: bool, two: bool) -> torch.Tensor:
        """By how much the velocity that was remembered last differs from its forecast by those before it: norms [B]."""
        uncond, cond = self._both(
            stage, batched, two, lambda b: [self._at(stage, b, 0), *self._terms(weights, stage, b, skip=1)]
        )
        coefficients = self._coefficients(weights, None, cond[0].device, against=True)
        out = self.buffers.like("past.guided", cond[0])
        axis = _axis(stage.large.channel_axis, coefficients)
        if uncond is None:
            ops.linear_combination(cond, coefficients, out=out, channel_dim=axis)
        else:
            ops.linear_combination_guided(cond, uncond, coefficients, guidance, out=out, channel_dim=axis)
        return ops.norm(out)

    def _at(self, stage: Stage, branch: int, age: int, name: str = "past") -> torch.Tensor:
        return self.buffers.of((name, self._slots[stage.index, branch][age][0], stage.index, branch))

    def _terms(self, weights: Weights, stage: Stage, branch: int, skip: int) -> list[torch.Tensor]:
        """What is weighed, in the order of ``_coefficients``: each velocity, with its low frequencies if told apart."""
        count, bands, _ = weights.values.shape
        names = ("past", "past.low")[:bands]
        return [self._at(stage, branch, age, name) for age in range(skip, skip + count) for name in names]

    def _both(self, stage: Stage, batched: bool, two: bool, terms) -> tuple[list | None, list]:
        """(unconditional terms or None, conditional terms)."""
        if batched:
            halves = [t.chunk(2) for t in terms(0)]
            return [u for u, _ in halves], [c for _, c in halves]
        return (terms(1) if two else None), terms(0)

    def _coefficients(self, weights: Weights, scale, device: torch.device, *, against: bool = False) -> torch.Tensor:
        """[terms, 1, channels or 1] on the device, made once."""

        def make() -> torch.Tensor:
            # Two bands: low a + high b = velocity b + low (a - b), so high frequencies are never stored.
            values = torch.from_numpy(weights.values.copy()).double()
            if values.shape[1] == 2:
                low, high = values.unbind(1)
                values = torch.stack([high, low - high], dim=1)
            values = values.flatten(0, 1)
            if against:
                values = torch.cat([torch.ones_like(values[:1]), -values])
            if scale is not None:
                of_prediction, of_x = scale
                values = torch.cat([values, torch.full_like(values[:1], -of_x)]) / of_prediction
            return values[:, None].float()

        return self.buffers.constant((weights, scale, against), device, make)

    def _constant(self, pair: tuple[float, float], device: torch.device) -> torch.Tensor:
        return self.buffers.constant(pair, device, lambda: torch.tensor(pair)[:, None, None])


def _low(velocity: torch.Tensor, out: torch.Tensor, buffers: Buffers) -> None:
    """The low spatial frequencies of [..., rows, columns]."""
    rows, columns = (
        buffers.constant(("low", n), velocity.device, lambda n=n: torch.from_numpy(low_frequencies(n)).float())
        for n in velocity.shape[-2:]
    )
    out.copy_(rows @ velocity.float() @ columns)


def _axis(axis: int, coefficients: torch.Tensor) -> int:
    """Where the channels are; uniform weights fit tensors that have none."""
    return axis if coefficients.shape[-1] > 1 else 1
