"""A Forecast calibration: inner products of the samples' velocities, error growth, and PSNR by predicted error."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..actions import Weights
from . import artifacts, gram, paths
from . import levels as by_level
from .channels import Channels
from .fidelity import Fidelity, at
from .file_state import FileState, state
from .flow import Flow
from .gram import Gram
from .packing import summed
from .paths import MAX_GAP, Plan

#: [T + 1][T] (``vaccel.planning.flow.Flow.response``).
Response = tuple[tuple[float, ...], ...]
METHOD = "forecast"
#: The objective of a path unless another one is requested: the best of some twenty rules on six prompts of each trained
#: family, which it was chosen on.
OBJECTIVE = "squares"
#: Above so many steps, or steps times groups of channels of a run at other levels than the calibration's, a path is
#: planned by what all channels have together: for each of many it takes too long, and the paths are the same but for
#: the smallest budgets.
MANY, MANY_GROUPS = 64, 1000
#: 3 dB: on the trained families runs at other levels are off by up to so much more than predicted.
ELSEWHERE = 2**0.5
#: A correction by what is known of other models reaches back over so many times its step's own change of the level.
REACH = 8.0
#: How a path is planned unless something else is asked for; paths that were refined are better ones of the same.
RULE = (OBJECTIVE, 2, "channel", True, MAX_GAP, True)
#: What is known of other models' error growth counts as so many samples.
OTHERS = 2.0


class Calibration:
    """The contents of a Forecast artifact.

    Args:
        data: the artifact, as ``artifacts.read`` returns it.
        seal: the digest that its file is sealed with.

    Attributes:
        gram: the inner products, averaged over the samples.
        error_growth: [T], the factor by which an error of the latents that enter a step has grown at the end.
        measured_growth: as this model's samples alone say; None where none was measured.
        fitted: the model and scheduler that it was measured on.
    """

    def __init__(self, data: dict[str, Any], seal: str = ""):
        self.data, self.seal = data, seal
        self.fitted = artifacts.fitted(data)
        samples = list(data["samples"].values())
        levels = tuple(samples[0]["levels"])
        bands, channels, steps = data["bands"], samples[0]["channels"], len(levels) - 1
        kept = [data["products"]] if "products" in data else []
        kept += [s["products"] for s in samples if "products" in s]  # not summed yet
        products = _matrices(summed(kept), (bands, channels, steps, steps))
        products /= len(samples)
        found = Gram(levels, products, samples[0]["elements"], tuple(samples[0].get("tensors", ())))
        measured = [s["error_growth"] for s in samples]
        growth = error_growth_of(measured, levels[:-1])
        self.measured_growth = interpolated_error_growth(measured, steps) if any(measured) else None
        self._old_trials = [s["trials"] for s in samples if s.get("trials")]
        self._curves = [curve for s in samples for curve in s.get("curves", ()) if curve]
        self._own, self._elsewhere = self, functools.lru_cache(maxsize=16)(self._read)
        self._take(found, growth)

    def _take(self, gram: Gram, error_growth: list[float]) -> None:
        """From now on it is of these; what follows from them is computed once each."""
        self.gram, self.error_growth = gram, error_growth
        for name in ("_plans", "_along", "weights", "residual_norm", "error", "solver_weights"):
            method = getattr(type(self), name).__get__(self)
            setattr(self, name, functools.lru_cache(maxsize=4096)(method))

    def at(self, levels: Sequence[float]) -> Calibration:
        """The calibration read at a run's noise levels [T + 1]: itself at its own ones, else the same object each time.

        Raises ``ValueError`` for levels that do not fall (``vaccel.planning.levels``).
        """
        own = self._own
        return own if by_level.same(own.gram.levels, levels) else own._elsewhere(tuple(levels))

    def _read(self, levels: tuple[float, ...]) -> Calibration:
        read = copy.copy(self)
        growth = by_level.read_growth(self.gram.levels[:-1], self.error_growth, levels[:-1])
        read._take(by_level.read_products(self.gram, levels), growth)
        return read

    def whole(self) -> Calibration:
        """The calibration with one set of weights for everything, whatever channels latents have."""
        return self.of(self.gram.products.sum(axis=(0, 1)))

    def of(self, products: np.ndarray) -> Calibration:
        """The calibration with other inner products, [T, T]."""
        read = copy.copy(self)
        read._take(Gram(self.gram.levels, products[None, None], self.gram.elements), self.error_growth)
        return read

    def plans(
        self, objective: str = OBJECTIVE, order: int = 2, per: str = "channel", error_growth: bool = True,
        max_gap: int = MAX_GAP, corrected: bool = True,
    ) -> Mapping[int, Plan]:  # fmt: skip
        """The best path of every budget (``vaccel.planning.paths.plans``), for runs whose computed steps are corrected.

        With ``error_growth`` paths are compared by their errors at the end of the run, without it by those at the next
        computed step.  The errors of the plans are those at the end in either case.  Solved once for all budgets.
        """
        return self._plans(objective, order, per, error_growth, max_gap, corrected)

    def plan(
        self, budget: int, objective: str = OBJECTIVE, order: int = 2, per: str = "channel",
        error_growth: bool = True, max_gap: int = MAX_GAP, corrected: bool = True,
    ) -> Plan:  # fmt: skip
        """The path that computes ``budget`` (at least 2) of the steps; all where there are fewer.

        The largest gap is wider where the steps are more than the calibration's, or too many for so few computed ones.
        """
        steps, own = self.gram.num_steps, self._own
        gap = math.ceil(max(max_gap * steps / own.gram.num_steps, max_gap, 1.5 * (steps - 1) / (budget - 1)))
        if self._many(per):  # by one weight for all channels, and what it costs with weights for each
            path = self.plan(budget, objective, order, "tensor", error_growth, max_gap, corrected).full_steps
            return self._along(path, order, per, corrected)
        found = self.plans(objective, order, per, error_growth, gap, corrected)
        return found[min(max(budget, min(found)), max(found))]

    def refined(self, budget: int) -> Plan | None:
        """The path that runs along it showed to be better than the plan (``vaccel.calibrate.refining``); None without.

        It is for the calibration's own levels.  Its predicted error is the plan's, which its runs fall below.
        """
        found = self.data.get("paths", {}).get(str(budget))
        if found is None:
            return None
        plan, along = self.plans()[budget], self._along(tuple(found["steps"]), 2, "channel", True)
        scale = plan.predicted / along.predicted if along.predicted > 0 else 1.0
        return Plan(along.full_steps, tuple(scale * error for error in along.errors))

    def _many(self, per: str) -> bool:
        """Whether paths are planned by what all channels have together."""
        steps, groups = self.gram.num_steps, len(self.gram.grouped(per))
        return per != "tensor" and (steps > MANY or (self is not self._own and steps * groups > MANY_GROUPS))

    def planned(self) -> Iterator[tuple[int, Callable[[], float]]]:
        """Every budget, and what works out the predicted error of its plan."""
        many = self._many("channel")
        found = self.plans(per="tensor" if many else "channel")
        for budget in found:
            yield budget, lambda b=budget: (self.plan(b) if many else found[b]).predicted

    def _plans(
        self, objective: str, order: int, per: str, error_growth: bool, max_gap: int, corrected: bool
    ) -> Mapping[int, Plan]:  # one signature: its calls are told apart by their arguments
        growth = self.error_growth if error_growth else [1.0] * self.gram.num_steps
        found = paths.plans(
            self.gram, growth, order=order, max_gap=max_gap, per=per, objective=objective, corrected=corrected
        )
        if error_growth:
            return found
        return {budget: self._along(plan.full_steps, order, per, corrected) for budget, plan in found.items()}

    def _along(self, path: tuple[int, ...], order: int, per: str, corrected: bool) -> Plan:
        """The path with its errors at the end of the run."""
        return Plan(path, paths.path_errors(self.gram, self.error_growth, path, order, per, corrected))

    def largest_error(self, path: tuple[int, ...], order: int, per: str) -> float:
        """The largest error at the end of the run of any stretch of the path that is not corrected."""
        return max(self._along(path, order, per, False).errors, default=0.0)

    def weights(self, known: tuple[int, ...], step: int, per: str = "channel") -> Weights:
        """The weights of the forecast of ``step``'s velocity from those of the computed steps ``known``."""
        return Weights(self.gram.weights(known, step, per))

    def residual_norm(self, known: tuple[int, ...], step: int, per: str) -> float:
        """The error of that forecast (root mean square)."""
        return self.gram.residual_norm(known, step, per)

    def error(self, known: tuple[int, ...], end: int, per: str) -> float:
        """The error of the finished latents (rms) when all steps after known[0] and before ``end`` <= T are skipped."""
        growth = [*self.error_growth, 1.0]  # after the last step nothing grows
        return growth[end] * self.gram.latent_error(known, end, per)

    def solver_weights(
        self, path: tuple[int, ...], response: Response, order: int = 2, per: str = "channel",
        given: tuple[Weights | None, ...] = (),
    ) -> dict[int, Weights]:  # fmt: skip
        """The weights of the velocity that a solver of this response receives, by step, where it is not the model's.

        See ``vaccel.planning.gram.solver_weights``.
        """
        reach = REACH if self.of_others else math.inf
        before = [None if w is None else w.values for w in given]
        found = gram.solver_weights(self.gram, path, response, order=order, per=per, reach=reach, given=before)
        return {step: Weights(values) for step, values in found.items()}

    @functools.cached_property
    def curves(self) -> list[list[tuple[float, float]]]:
        """(predicted error, PSNR in dB) of every sample's trial runs; of those that have any."""
        if self is not self._own:
            return self._own.curves
        curves = [[(error, psnr) for error, psnr in curve if math.isfinite(psnr)] for curve in self._curves]
        curves += [self._planned_now(trials) for trials in self._old_trials]
        return [curve for curve in curves if curve]

    @functools.cached_property
    def metrics(self) -> dict[str, list[list[tuple[float, float]]]]:
        """Of other metrics than PSNR, by name: (predicted error, value) of every sample's trial runs."""
        found: dict[str, list] = {}
        for name, curves in (item for s in self.data["samples"].values() for item in s.get("metrics", {}).items()):
            found.setdefault(name, []).extend(curve for curve in curves if curve)
        return {name: curves for name, curves in found.items() if curves}

    def expected(self, error: float) -> dict[str, float]:
        """What runs of this predicted error are worth by each of ``metrics``, in the mean; at the ends as there."""
        return {name: float(np.mean([at(curve, error) for curve in curves])) for name, curves in self.metrics.items()}

    @property
    def fidelity(self) -> Fidelity | None:
        """PSNR by predicted error, as the trial runs say; None without any.

        At other levels than the calibration's errors count as ``ELSEWHERE`` times as large as predicted.
        """
        if not self.curves:
            return None
        found = Fidelity(self.curves, of_others=self.of_others)
        return found if self is self._own else found.scaled(1 / ELSEWHERE)

    @property
    def of_others(self) -> bool:
        """Whether it is of other models than those that it serves (``vaccel.planning.prior``)."""
        return self.data["model"].get("class") == "any"

    @functools.cached_property
    def scale(self) -> float:
        """The root mean square of the velocities."""
        own = self._own.gram
        return math.sqrt(float(np.trace(own.grouped("tensor")[0])) / own.elements / own.num_steps)

    def _planned_now(self, trials: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Trial runs of older artifacts, whose errors are those of paths planned without corrections."""
        before, now = self.plans("leximax", corrected=False), self.plans()
        known = {budget: plan.predicted for budget, plan in before.items() if plan.predicted > 0}
        nearest = [min(known, key=lambda b, e=e: abs(math.log(known[b] / max(e, 1e-12)))) for e, _ in trials if known]
        return [(now[b].predicted, psnr) for b, (_, psnr) in zip(nearest, trials, strict=False) if math.isfinite(psnr)]

    def psnr(self, error: float) -> tuple[float, float] | None:
        """(expected PSNR in dB of finished clips, the PSNR that nineteen in twenty reach); None without trial runs.

        See ``vaccel.planning.fidelity``.
        """
        known = self.fidelity
        return known.at(error) if known is not None else None


def calibration(path: str | Path) -> Calibration:
    """A Forecast artifact, cached until the file changes.  Raises as ``artifacts.read`` does."""
    return _calibration(str(path), state(path))


@functools.lru_cache(maxsize=8)
def _calibration(path: str, found: FileState) -> Calibration:
    return Calibration(*artifacts.read_sealed(path, METHOD))


def sample_of(velocities: torch.Tensor, flow: Flow, channels: Channels, bands: int) -> tuple[Gram, dict[str, Any]]:
    """The inner products of a run's guided velocities [T, B, ...], and the sample of an artifact that holds them.

    Raises ``ValueError`` for velocities that are not finite.
    """
    if not bool(torch.isfinite(velocities).all()):
        raise ValueError("this run's outputs are not finite: it is not used for calibration")
    products = gram.inner_products(velocities, channels, bands)
    tensors = tuple(piece.channels for piece in channels.pieces)
    found = Gram(flow.levels, products, max(_moving(velocities), 1), tensors)
    levels = [float(f"{level:.7g}") for level in flow.levels]  # every sample has them: no more digits than are needed
    data = {"levels": levels, "channels": products.shape[1], "bands": bands, "elements": found.elements}
    if tensors:
        data["tensors"] = list(tensors)
    return found, {**data, "products": packed(products), "error_growth": {}}


def _moving(velocities: torch.Tensor) -> int:
    """How many elements of a clip have a velocity at any step, of a run's [T, B, ...]."""
    return round(int((velocities != 0).any(dim=0).sum()) / velocities.shape[1])


def packed(products: np.ndarray) -> str:
    """Symmetric matrices [..., T, T] as text: their upper triangles, in fp64."""
    rows, columns = np.triu_indices(products.shape[-1])
    return artifacts.pack(products[..., rows, columns])


def unpacked(text: str, shape: Sequence[int]) -> np.ndarray:
    """The matrices of this shape that ``packed`` was called with."""
    return _matrices(artifacts.unpack(text), shape)


def _matrices(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Symmetric matrices of this shape from their upper triangles, one after the other."""
    upper = np.tri(shape[-1], dtype=bool).T
    out = np.empty(shape)
    triangles = values.reshape(-1, np.count_nonzero(upper))
    for matrix, triangle in zip(out.reshape(-1, *shape[-2:]), triangles, strict=True):
        matrix[upper] = triangle
        np.copyto(matrix, matrix.T, where=~upper)
    return out


def error_growth_of(measured: list[dict[str, float]], levels: Sequence[float]) -> list[float]:
    """[T], the error growth at the ``levels`` [T] of a run, of every sample's measurements by step.

    Drawn towards that of other models at these levels (``vaccel.planning.prior``), which counts as ``OTHERS`` samples:
    it planned better paths than measurements on two samples did, on both of the trained families.
    """
    from .prior import shipped  # which is a calibration too, with measurements

    count = sum(map(bool, measured))
    if len(measured) == 1 and len(measured[0]) == len(levels):  # at every step: those of a merged calibration
        return interpolated_error_growth(measured, len(levels))
    known = calibration(shipped())
    others = by_level.read_growth(known.gram.levels[:-1], known.error_growth, levels)
    if not count:
        return others
    own, share = np.log(interpolated_error_growth(measured, len(levels))), count / (count + OTHERS)
    return np.exp(share * own + (1 - share) * np.log(others)).tolist()


def interpolated_error_growth(measured: list[dict[str, float]], steps: int) -> list[float]:
    """[T] from every sample's error growth by step: geometric means, geometrically interpolated between steps.

    An error that arises earlier has longer to grow, and single measurements scatter by more than neighbouring steps
    differ.  So the means are made non-increasing by isotonic regression.
    """
    names = sorted({int(j) for sample in measured for j in sample})
    logs = _non_increasing([[math.log(max(s[str(j)], 1e-6)) for s in measured if str(j) in s] for j in names])
    return np.exp(np.interp(np.arange(steps), names, logs)).tolist()


def _non_increasing(groups: Iterable[Sequence[float]]) -> list[float]:
    """Isotonic regression by pooling adjacent violators: every group's mean, groups joined as long as means rise."""
    pools: list[tuple[int, list[float]]] = []  # (number of groups, their values)
    for values in groups:
        count, values = 1, list(values)
        while pools and np.mean(pools[-1][1]) < np.mean(values):
            before, others = pools.pop()
            count, values = before + count, others + values
        pools.append((count, values))
    return [float(np.mean(values)) for count, values in pools for _ in range(count)]
