"""A Forecast calibration: inner products of the samples' velocities, error growth, and PSNR by predicted error."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..actions import Weights
from . import artifacts, gram
from . import levels as by_level
from .channels import Channels
from .file_state import FileState, state
from .flow import Flow
from .gram import MAX_GAP, Gram, Plan
from .packing import summed

#: [T + 1][T] (``vaccel.planning.flow.Flow.response``).
Response = tuple[tuple[float, ...], ...]
METHOD = "forecast"
#: The objective of a path unless another one is requested.
OBJECTIVE = "leximax"
#: Above so many steps a path is planned by what all channels have together: for each of many it takes seconds.
MANY = 64


class Calibration:
    """The contents of a Forecast artifact.

    Args:
        data: the artifact, as ``artifacts.read`` returns it.
        seal: the digest that its file is sealed with.

    Attributes:
        gram: the inner products, averaged over the samples.
        error_growth: [T], the factor by which an error of the latents that enter a step has grown at the end.
        curve: [(predicted error, PSNR in dB)] of the calibration's trial runs; may be empty.
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
        growth = error_growth_of([s["error_growth"] for s in samples], levels[:-1])
        self.curve = sorted(
            (predicted, psnr) for s in samples for predicted, psnr in s.get("trials", ()) if math.isfinite(psnr)
        )
        self._own, self._elsewhere = self, functools.lru_cache(maxsize=16)(self._read)
        self._take(found, growth)

    def _take(self, gram: Gram, error_growth: list[float]) -> None:
        """From now on it is of these; what follows from them is computed once each."""
        self.gram, self.error_growth = gram, error_growth
        for name in ("_plans", "weights", "residual_norm", "error", "solver_weights"):
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
        read, products = copy.copy(self), self.gram.products.sum(axis=(0, 1), keepdims=True)
        read._take(Gram(self.gram.levels, products, self.gram.elements), self.error_growth)
        return read

    def plans(
        self, objective: str = OBJECTIVE, order: int = 2, per: str = "channel", error_growth: bool = True,
        max_gap: int = MAX_GAP,
    ) -> Mapping[int, Plan]:  # fmt: skip
        """The best path of every budget (``vaccel.planning.gram.plans``).

        With ``error_growth`` paths are compared by their errors at the end of the run, without it by those at the next
        computed step.  The errors of the plans are those at the end in either case.  Solved once for all budgets.
        """
        return self._plans(objective, order, per, error_growth, max_gap)

    def plan(
        self, budget: int, objective: str = OBJECTIVE, order: int = 2, per: str = "channel",
        error_growth: bool = True, max_gap: int = MAX_GAP,
    ) -> Plan:  # fmt: skip
        """The path that computes ``budget`` (at least 2) of the steps; all where there are fewer.

        The largest gap is wider where the steps are more than the calibration's, or too many for so few computed ones.
        """
        steps = self.gram.num_steps
        gap = math.ceil(max(max_gap * steps / self._own.gram.num_steps, max_gap, 1.5 * (steps - 1) / (budget - 1)))
        if steps > MANY and per != "tensor":  # by one weight for all channels, and what it costs with weights for each
            path = self.plan(budget, objective, order, "tensor", error_growth, max_gap).full_steps
            return self._final_errors(path, order, per)
        found = self.plans(objective, order, per, error_growth, gap)
        return found[min(max(budget, min(found)), max(found))]

    def _plans(
        self, objective: str, order: int, per: str, error_growth: bool, max_gap: int
    ) -> Mapping[int, Plan]:  # one signature: its calls are told apart by their arguments
        growth = self.error_growth if error_growth else [1.0] * self.gram.num_steps
        found = gram.plans(self.gram, growth, order=order, max_gap=max_gap, per=per, objective=objective)
        if error_growth:
            return found
        return {budget: self._final_errors(plan.full_steps, order, per) for budget, plan in found.items()}

    def _final_errors(self, path: tuple[int, ...], order: int, per: str) -> Plan:
        """The path with its errors at the end of the run."""
        known = [path[max(0, k - order) : k][::-1] for k in range(len(path))]
        return Plan(path, tuple(self.error(known[k], path[k], per) for k in range(1, len(path))))

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
        self, path: tuple[int, ...], response: Response, order: int = 2, per: str = "channel"
    ) -> dict[int, Weights]:
        """The weights of the velocity that a solver of this response receives, by step, where it is not the model's.

        See ``vaccel.planning.gram.solver_weights``.
        """
        found = gram.solver_weights(self.gram, path, response, order=order, per=per)
        return {step: Weights(values) for step, values in found.items()}

    def psnr(self, error: float) -> tuple[float, float] | None:
        """(expected PSNR in dB of finished clips, the PSNR that five prompts in six reach); None without trial runs.

        The first is a line fitted to ``curve``.  The second adds, by split conformal prediction, the (n + 1) / 6 th
        smallest of the n runs' residuals from that line, or the smallest where there are fewer than five.
        """
        if len(self.curve) < 3:
            return None
        x, y = np.array([[-20 * math.log10(e), p] for e, p in self.curve]).T
        slope, offset = np.polyfit(x, y, 1) if np.ptp(x) > 1 else (1.0, float(np.mean(y - x)))
        residuals = np.sort(y - (slope * x + offset))
        expected = float(slope * -20 * math.log10(max(error, 1e-12)) + offset)
        return expected, expected + float(residuals[max((len(residuals) + 1) // 6 - 1, 0)])


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
    data = {"levels": list(flow.levels), "channels": products.shape[1], "bands": bands, "elements": found.elements}
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

    Where none has any, that of other models at these levels (``vaccel.planning.prior``): it planned better paths than
    measurements on two samples did, on both of the trained families.
    """
    if any(measured):
        return interpolated_error_growth(measured, len(levels))
    from .prior import shipped  # which is a calibration too, with measurements

    known = calibration(shipped())
    return by_level.read_growth(known.gram.levels[:-1], known.error_growth, levels)


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
