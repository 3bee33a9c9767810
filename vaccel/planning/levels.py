"""A calibration read at other noise levels than its own.

Velocities depend on the noise level s far more than on a step's number.  So what was recorded at levels s_0 > ... >
s_(T-1) is read at any others s'_0 > ... > s'_(T'-1): with W [T', T] that interpolates in s, the velocities there are
W v and their inner products G' = W G W^T, which stay positive semidefinite; the logarithm of the error growth is
interpolated linearly.  Levels below what was recorded are read at its end.  A run that begins above it is read with its
levels scaled so that both begin at one: at the end alone nothing would change, and the first steps, whose errors grow
most, would seem to cost nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from .gram import Gram

#: Noise levels that differ by less are taken as equal.
SAME_LEVEL = 2e-3


def check_falling(levels: Sequence[float], what: str) -> None:
    """Raises ``ValueError`` that names the first of ``levels`` that is not finite or above the one before it.

    Equal ones are those of solvers that ask the model twice at a level, such as Heun's.
    """
    for step, (before, level) in enumerate(zip([math.inf, *levels], levels, strict=False)):
        if not math.isfinite(level):
            raise ValueError(f"{what} must be finite numbers: that of step {step} is {level}")
        if level > before:
            raise ValueError(f"{what} must fall: {level:.6g} at step {step} comes after {before:.6g}")


def same(known: Sequence[float], wanted: Sequence[float]) -> bool:
    """Whether runs at ``wanted`` levels are those that were recorded."""
    return len(known) == len(wanted) and max(abs(a - b) for a, b in zip(known, wanted, strict=True)) <= SAME_LEVEL


def interpolation(known: Sequence[float], wanted: Sequence[float]) -> np.ndarray:
    """W [T', T]: values at the ``known`` falling levels read at the ``wanted`` ones, by cubic Hermite polynomials.

    The slopes are those of the parabola through a level and its two neighbours, at the ends of the straight line.
    """
    at, count = np.asarray(known, float)[::-1], len(known)  # rising
    if count == 1:
        return np.ones((len(wanted), 1))
    widths = np.diff(at)
    secants = (np.eye(count)[1:] - np.eye(count)[:-1]) / widths[:, None]
    slopes = np.empty((count, count))
    slopes[0], slopes[-1] = secants[0], secants[-1]
    before, after = widths[:-1, None], widths[1:, None]
    slopes[1:-1] = (after * secants[:-1] + before * secants[1:]) / (before + after)
    s = np.clip(np.asarray(wanted, float), at[0], at[-1])
    left = np.clip(np.searchsorted(at, s, side="right") - 1, 0, count - 2)
    h, t = widths[left][:, None], ((s - at[left]) / widths[left])[:, None]
    unit = np.eye(count)
    read = (
        (1 + 2 * t) * (1 - t) ** 2 * unit[left]
        + t**2 * (3 - 2 * t) * unit[left + 1]
        + h * t * (1 - t) ** 2 * slopes[left]
        - h * t**2 * (1 - t) * slopes[left + 1]
    )
    return read[:, ::-1]


def read_products(gram: Gram, levels: Sequence[float]) -> Gram:
    """The inner products as they would be at other ``levels`` [T' + 1].

    Raises ``ValueError`` for levels, recorded or wanted, that do not fall.
    """
    check_falling(gram.levels, "the calibration's noise levels")
    check_falling(levels, "the run's noise levels")
    at = distinct(gram.levels[:-1])
    w = interpolation([gram.levels[i] for i in at], scaled(levels[:-1], gram.levels[0]))
    products = w @ gram.products[..., at, :][..., at] @ w.T
    return dataclasses.replace(gram, levels=tuple(levels), products=products)


def scaled(levels: Sequence[float], first: float) -> np.ndarray:
    """The levels of a run; where they begin above the ``first`` recorded one, scaled to begin there."""
    wanted = np.asarray(levels, float)
    return wanted * min(1.0, first / wanted[0]) if len(wanted) and wanted[0] > 0 else wanted


def distinct(levels: Sequence[float]) -> list[int]:
    """The steps whose level is another than that of the step before."""
    return [i for i, level in enumerate(levels) if i == 0 or level < levels[i - 1]]


def read_growth(levels: Sequence[float], growth: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """[T']: the error growth [T] of latents that enter the steps at ``levels`` [T], at the ``wanted`` levels [T']."""
    rising = np.log(np.maximum(np.asarray(growth, float)[::-1], 1e-12))
    return np.exp(np.interp(scaled(wanted, levels[0]), np.asarray(levels, float)[::-1], rising)).tolist()
