"""Plain loops of Forecast, written from its description alone, in numpy's fp64: slow, nothing of vaccel.

Everything is done on the full vectors: no Gram matrix appears here, neither for a fit nor for an error.

Letters: ``S`` samples, ``T`` steps, ``C`` channels, ``K`` known steps, ``G`` groups of channels that share weights: 1
or C.  Trajectories are [S, T, C, ...], a batch of latents is [S, C, ...], ``sigmas`` has T + 1 entries.  ``known``
lists computed steps, newest first: v_i is forecast as the sum over k of a_k v_known[k].

Readings of what is left open:

* The weights of one edge are fitted per skipped step, each to that step's velocity alone, and the same for all samples;
  the samples count as they are, none is scaled.
* An edge's error is the norm of the summed errors: what two skipped steps do wrong may cancel.
* From the second computed step on, two are known; before it, one.  Three only count where ``order`` allows them.
* Equal objectives: the path that is first in lexicographic order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from numpy import ndarray

Model = Callable[[ndarray, int], ndarray]  # latents [S, C, ...] and the index of the step -> velocity
Weights = Callable[[int, tuple[int, ...]], ndarray]  # step to forecast, known steps -> [K, C] or [K, 1]


def full_vectors(velocities: ndarray) -> ndarray:
    """[S, T, C, ...] as fp64 [S, T, C, n]."""
    v = np.asarray(velocities, dtype=np.float64)
    assert v.ndim >= 4
    return v.reshape(*v.shape[:3], -1)


def channel_groups(channels: int, groups: str) -> list[list[int]]:
    assert groups in ("tensor", "channel")
    return [list(range(channels))] if groups == "tensor" else [[c] for c in range(channels)]


# --- weights and errors ---------------------------------------------------------------------------------------------


def coefficients(velocities: ndarray, known: Sequence[int], target: int, groups: str) -> ndarray:
    """The [K, G] weights that minimise the sum over samples of ||v_target - sum_k a_k v_known[k]||^2.

    Known velocities that depend on each other: the smallest weights that do it.
    """
    v = full_vectors(velocities)
    answer = []
    for members in channel_groups(v.shape[2], groups):
        columns, wanted = [[] for _ in known], []
        for sample in v:
            for c in members:
                wanted.append(sample[target, c])
                for k, f in enumerate(known):
                    columns[k].append(sample[f, c])
        matrix = np.stack([np.concatenate(column) for column in columns], axis=1)
        solution, *_ = np.linalg.lstsq(matrix, np.concatenate(wanted), rcond=None)
        answer.append(solution)
    return np.stack(answer, axis=1)


def combine(remembered: Sequence[ndarray], weights: ndarray) -> ndarray:
    """Velocities [S, C, ...], newest first, with weights [K, C], or [K, 1] for one weight for all channels."""
    assert len(remembered) == len(weights)
    forecast = np.zeros_like(remembered[0], dtype=np.float64)
    for velocity, row in zip(remembered, weights, strict=True):
        assert len(row) in (1, velocity.shape[1])
        for c in range(velocity.shape[1]):
            forecast[:, c] += row[c if len(row) > 1 else 0] * velocity[:, c]
    return forecast


def forecast_from(velocities: ndarray, known: Sequence[int], weights: ndarray) -> ndarray:
    """The forecast [S, C, n] of whole trajectories from their own known steps."""
    v = full_vectors(velocities)
    return combine([v[:, f] for f in known], weights)


def root_mean_square(errors: ndarray) -> float:
    """Over samples, of each sample's norm."""
    total = 0.0
    for sample in errors:
        total += float((sample**2).sum())
    return math.sqrt(total / len(errors))


def latent_error(velocities: ndarray, sigmas: Sequence[float], known: Sequence[int], end: int, groups: str) -> float:
    """How far the latents are off at ``end``, in the root mean square over samples, if what is between is forecast.

    The norm of the sum over skipped steps i of (sigma_{i+1} - sigma_i) (v_i - vhat_i), with the forecasts fitted to
    the same trajectories.
    """
    v = full_vectors(velocities)
    samples, steps = v.shape[:2]
    assert len(sigmas) == steps + 1
    assert list(known) == sorted(known, reverse=True)
    assert known[0] < end <= steps
    off = np.zeros_like(v[:, 0])
    for i in range(known[0] + 1, end):
        error = v[:, i] - forecast_from(v, known, coefficients(v, known, i, groups))
        off += (sigmas[i + 1] - sigmas[i]) * error
    return float(np.linalg.norm(off.ravel())) / math.sqrt(samples)


def edge_error(
    velocities: ndarray,
    sigmas: Sequence[float],
    known: Sequence[int],
    end: int,
    groups: str,
    error_growth: Sequence[float],
    corrected: bool = False,
) -> float:
    """The error of the latents at ``end``, times its growth until the last step.

    Where that step is ``corrected``: the geometric mean of this and of what it leaves, times the growth from the next
    step on, which is 1 behind the last.
    """
    begun = [*error_growth, 1.0][end] * latent_error(velocities, sigmas, known, end, groups)
    if not corrected or end == len(error_growth):
        return begun
    left = [*error_growth, 1.0][end + 1] * error_left(velocities, sigmas, known, end, groups)
    return math.sqrt(begun * left)


def error_left(velocities: ndarray, sigmas: Sequence[float], known: Sequence[int], end: int, groups: str) -> float:
    """What of ``latent_error``'s error no combination of the velocities at ``end`` and at the known steps makes up for.

    Least squares, by group, on the full vectors of all samples.
    """
    v = full_vectors(velocities)
    off = np.zeros_like(v[:, 0])
    for i in range(known[0] + 1, end):
        off += (sigmas[i + 1] - sigmas[i]) * (v[:, i] - forecast_from(v, known, coefficients(v, known, i, groups)))
    parts = [slice(c, c + 1) for c in range(v.shape[2])] if groups == "channel" else [slice(None)]
    square = 0.0
    for part in parts:
        columns = np.stack([v[:, i][:, part].ravel() for i in (end, *known)], axis=1)
        target = off[:, part].ravel()
        square += float(np.sum((target - columns @ np.linalg.lstsq(columns, target, rcond=None)[0]) ** 2))
    return math.sqrt(square / len(v))


# --- paths ----------------------------------------------------------------------------------------------------------


def score(errors: Sequence[float], objective: str) -> tuple[float, ...]:
    """What the best path has least of, compared as tuples are: an entry after the other, a prefix before the longer."""
    if objective == "leximax":
        return tuple(sorted(errors, reverse=True))
    if objective == "sum":
        return (math.fsum(errors),)
    assert objective == "squares"
    return (math.fsum(e * e for e in errors),)


def paths(steps: int, budget: int, max_gap: int) -> list[tuple[int, ...]]:
    """Every choice of ``budget`` steps with the first among them and no gap too wide, nor that to the run's end."""
    chosen = (tuple(sorted({0, *others})) for others in combinations(range(1, steps), budget - 1))
    return [path for path in chosen if all(b - a <= max_gap for a, b in pairwise((*path, steps)))]


def known_after(computed: Sequence[int], order: int) -> tuple[int, ...]:
    """The newest ``order`` of the computed steps, newest first; all of them if there are no more."""
    return tuple(sorted(computed, reverse=True)[:order])


def path_errors(
    velocities: ndarray,
    sigmas: Sequence[float],
    error_growth: Sequence[float],
    order: int,
    groups: str,
    path: Sequence[int],
    edges: dict[tuple[tuple[int, ...], int], float],
    corrected: bool = False,
) -> list[float]:
    """The error of each edge in the path's order, at last that to the run's end, where no step corrects anything.

    ``edges`` remembers them, as paths share many.
    """
    errors, steps = [], len(error_growth)
    for position in range(1, len(path) + 1):
        known, end = known_after(path[:position], order), (*path, steps)[position]
        if end == known[0] + 1:
            errors.append(0.0)
            continue
        if (known, end) not in edges:
            edges[known, end] = edge_error(velocities, sigmas, known, end, groups, error_growth, corrected)
        errors.append(edges[known, end])
    return errors


def best_paths(
    velocities: ndarray,
    sigmas: Sequence[float],
    error_growth: Sequence[float],
    order: int,
    max_gap: int,
    groups: str,
    objective: str,
    corrected: bool = False,
) -> dict[int, tuple[tuple[int, ...], list[float]]]:
    """Of every number of computed steps that has a path: the best one and its edges' errors, descending.

    All subsets are tried, so there are nine steps at most.  ``error_growth`` has an entry for every step; only
    those of steps that end an edge count.
    """
    v = full_vectors(velocities)
    steps = v.shape[1]
    assert 2 <= steps <= 9
    edges: dict[tuple[tuple[int, ...], int], float] = {}
    best = {}
    for budget in range(2, steps + 1):
        least = None
        for path in paths(steps, budget, max_gap):
            errors = path_errors(v, sigmas, error_growth, order, groups, path, edges, corrected)
            candidate = (score(errors, objective), path, sorted(errors, reverse=True))
            if least is None or candidate[:2] < least[:2]:
                least = candidate
        if least is not None:
            best[budget] = least[1:]
    return best


# --- bands ----------------------------------------------------------------------------------------------------------


def cosine(size: int, frequency: int) -> ndarray:
    """The vector of unit length of an orthonormal DCT-II."""
    scale = math.sqrt((1 if frequency == 0 else 2) / size)
    return np.array([scale * math.cos(math.pi * (j + 0.5) * frequency / size) for j in range(size)])


def bands(latents: ndarray, cutoff: float) -> tuple[ndarray, ndarray]:
    """The part of low frequency in height and width (the last two axes), and the rest, both in the latents' shape.

    Low is what has both indices below ``ceil(cutoff * size)`` of its axis.
    """
    x = np.asarray(latents, dtype=np.float64)
    height, width = x.shape[-2:]
    low, high = np.zeros_like(x), np.zeros_like(x)
    for p in range(height):
        for q in range(width):
            wave = np.outer(cosine(height, p), cosine(width, q))
            amount = (x * wave).sum(axis=(-2, -1))
            is_low = p < math.ceil(cutoff * height) and q < math.ceil(cutoff * width)
            part = low if is_low else high
            part += amount[..., None, None] * wave
    return low, high


def banded_coefficients(
    velocities: ndarray, known: Sequence[int], target: int, cutoff: float, groups: str = "channel"
) -> dict[str, ndarray]:
    """Weights [K, G] for "low" and for "high", each fitted to its band of trajectories [S, T, C, F, H, W] alone."""
    assert np.ndim(velocities) == 6
    low, high = bands(velocities, cutoff)
    return {"low": coefficients(low, known, target, groups), "high": coefficients(high, known, target, groups)}


def banded_forecast(velocities: ndarray, known: Sequence[int], weights: dict[str, ndarray], cutoff: float) -> ndarray:
    """The forecast [S, C, F, H, W]: each band from the known steps' same band."""
    answer = np.zeros_like(np.asarray(velocities, dtype=np.float64)[:, 0])
    for name, part in zip(("low", "high"), bands(velocities, cutoff), strict=True):
        answer += combine([part[:, f] for f in known], weights[name])
    return answer


def banded_latent_error(
    velocities: ndarray, sigmas: Sequence[float], known: Sequence[int], end: int, cutoff: float, groups: str = "channel"
) -> float:
    """``latent_error`` with forecasts by band."""
    v = np.asarray(velocities, dtype=np.float64)
    assert len(sigmas) == v.shape[1] + 1
    off = np.zeros_like(v[:, 0])
    for i in range(known[0] + 1, end):
        weights = banded_coefficients(v, known, i, cutoff, groups)
        off += (sigmas[i + 1] - sigmas[i]) * (v[:, i] - banded_forecast(v, known, weights, cutoff))
    return root_mean_square(off)


# --- without calibration --------------------------------------------------------------------------------------------


def uncalibrated(
    velocities_known: Sequence[ndarray], sigmas: Sequence[float], known: Sequence[int], target: int, damping: float
) -> ndarray:
    """The line in sigma through the two newest known velocities, its slope damped; with one known, that velocity."""
    newest = np.asarray(velocities_known[0], dtype=np.float64)
    if len(known) == 1:
        return newest
    f1, f2 = known[:2]
    slope = (newest - np.asarray(velocities_known[1], dtype=np.float64)) / (sigmas[f1] - sigmas[f2])
    return newest + damping * (sigmas[target] - sigmas[f1]) * slope


# --- diffusion models as flows --------------------------------------------------------------------------------------


def flow_space(
    alpha: float, sigma: float, x: ndarray, prediction: ndarray, kind: str
) -> tuple[ndarray, ndarray, ndarray]:
    """x0, eps and the flow velocity eps - x0 of a state x = alpha x0 + sigma eps with what a model predicts there.

    Two equations for two unknowns: the state's, and what ``kind`` says that the prediction is made of.  Where they do
    not settle it (the noise at alpha = 0 tells no sample), numpy raises ``LinAlgError``.
    """
    of_x0, of_eps = {
        "epsilon": (0.0, 1.0),
        "sample": (1.0, 0.0),
        "v_prediction": (-sigma, alpha),
        "flow_prediction": (-1.0, 1.0),
    }[kind]
    if kind == "flow_prediction":
        assert math.isclose(alpha, 1 - sigma, abs_tol=1e-6)
    else:
        assert math.isclose(alpha**2 + sigma**2, 1, abs_tol=1e-6)
    matrix = np.array([[alpha, sigma], [of_x0, of_eps]], dtype=np.float64)
    both = np.stack([np.ravel(x), np.ravel(prediction)]).astype(np.float64)
    x0, eps = (part.reshape(np.shape(x)) for part in np.linalg.solve(matrix, both))
    return x0, eps, eps - x0


def flow_sigma(alpha: float, sigma: float) -> float:
    """The noise's share: x / (alpha + sigma) = (1 - s) x0 + s eps."""
    return sigma / (alpha + sigma)


def ddim_step(alpha: float, sigma: float, alpha2: float, sigma2: float, x0: ndarray, eps: ndarray) -> ndarray:
    """The next state of deterministic DDIM, which asks nothing of the present ``alpha`` and ``sigma``."""
    return alpha2 * x0 + sigma2 * eps


def euler_step_in_flow_space(
    alpha: float, sigma: float, alpha2: float, sigma2: float, x: ndarray, velocity: ndarray
) -> ndarray:
    """The next state by way of the flow: x scaled to it, an Euler step along ``velocity``, scaled back."""
    there = x / (alpha + sigma)
    there = there + (flow_sigma(alpha2, sigma2) - flow_sigma(alpha, sigma)) * velocity
    return there * (alpha2 + sigma2)


# --- runs -----------------------------------------------------------------------------------------------------------


class Sampled(NamedTuple):
    """The final latents [S, C, ...] and the velocity used at every step."""

    latents: ndarray
    velocities: list[ndarray]


def run(
    model: Model, x: ndarray, sigmas: Sequence[float], path: Sequence[int], weights: Weights, order: int = 2
) -> Sampled:
    """Euler's method with the model at the steps of ``path``; elsewhere forecasts from the last ``order`` of them."""
    assert 0 in path
    computed: dict[int, ndarray] = {}
    used = []
    for i in range(len(sigmas) - 1):
        if i in path:
            v = computed[i] = model(x, i)
        else:
            known = known_after(list(computed), order)
            v = combine([computed[f] for f in known], weights(i, known))
        used.append(v)
        x = x + (sigmas[i + 1] - sigmas[i]) * v
    return Sampled(x, used)


def run_guided(
    model_cond: Model,
    model_uncond: Model,
    scale: float,
    x: ndarray,
    sigmas: Sequence[float],
    path: Sequence[int],
    weights: Weights,
    order: int = 2,
) -> Sampled:
    """``run`` with both branches computed or, with the same weights, forecast, each from its own; then guided."""
    assert 0 in path
    models = {"cond": model_cond, "uncond": model_uncond}
    computed: dict[str, dict[int, ndarray]] = {"cond": {}, "uncond": {}}
    used = []
    for i in range(len(sigmas) - 1):
        branch = {}
        for name, model in models.items():
            if i in path:
                branch[name] = computed[name][i] = model(x, i)
            else:
                known = known_after(list(computed[name]), order)
                branch[name] = combine([computed[name][f] for f in known], weights(i, known))
        v = branch["uncond"] + scale * (branch["cond"] - branch["uncond"])
        used.append(v)
        x = x + (sigmas[i + 1] - sigmas[i]) * v
    return Sampled(x, used)


# --- the guard ------------------------------------------------------------------------------------------------------


class ForecastError(NamedTuple):
    actual: float
    expected: float
    ratio: float


def forecast_error(
    velocities: ndarray, trajectory: ndarray, known: Sequence[int], step: int, groups: str
) -> ForecastError:
    """How far a computed step is from what the steps before it foretold, and how far it is in calibration.

    Args:
        velocities: the calibration's trajectories [S, T, C, ...], which the weights are fitted to.
        trajectory: the running sample's [T, C, ...]; read at ``step`` and at the known steps.
    """
    assert known[0] < step
    v, running = full_vectors(velocities), full_vectors(np.asarray(trajectory)[None])
    weights = coefficients(v, known, step, groups)
    expected = root_mean_square(v[:, step] - forecast_from(v, known, weights))
    actual = root_mean_square(running[:, step] - forecast_from(running, known, weights))
    return ForecastError(actual, expected, actual / expected if expected > 0 else math.inf)
