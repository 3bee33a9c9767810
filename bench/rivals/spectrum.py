"""Spectrum (arXiv 2603.01623): features as polynomials in time, fitted to all computed steps by ridge regression.

With tau = 2 i / T - 1 of step i, and X the Chebyshev polynomials T_0 .. T_m of the computed steps' tau (rows),

    coefficients C = (X^T X + lambda I)^-1 X^T F,    stand-in = [T_0(tau) .. T_m(tau)] C

The release mixes this with a straight line through the last two computed steps: w of the first, 1 - w of the second
(w = 1 is the paper's own; the authors recommend 0.5 to 1).  Steps are computed while ``warm`` lasts, then whenever
floor(window) steps have passed, and each time the window grows by ``flex``; the release's defaults are m = 4,
lambda = 0.1, w = 1, warm = 5, window = 2, and flex sets the cost.  The features are the last block's (in the release
for SDXL what enters ``conv_norm_out``).  Ours: in full precision, where the release fits in bfloat16.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.polynomial import chebyshev

from .loop import Scheduled


def ridge(known: Sequence[int], step: int, steps: int, degree: int, penalty: float) -> np.ndarray:
    """The Chebyshev stand-in's weights of the known steps."""

    def basis(of: Sequence[int]) -> np.ndarray:
        return chebyshev.chebvander(2 * np.asarray(of, dtype=float) / steps - 1, degree)

    rows = basis(known)
    inner = rows.T @ rows + penalty * np.eye(degree + 1)
    return np.linalg.solve(inner, rows.T).T @ basis([step])[0]


def mixed(known: Sequence[int], step: int, *, steps: int, degree: int, penalty: float, w: float) -> np.ndarray:
    line = np.zeros(len(known))
    line[-1] = 1.0
    if len(known) > 1:
        slope = (step - known[-1]) / (known[-1] - known[-2])
        line[-2:] += -slope, slope
    return w * ridge(known, step, steps, degree, penalty) + (1 - w) * line


def growing(steps: int, warm: int, window: float, flex: float) -> list[int]:
    """The release's computed steps."""
    path, skipped = [], 0
    for step in range(steps):
        computed = step < warm or (skipped + 1) % math.floor(window) == 0
        if computed and step >= warm:
            window = round(window + flex, 3)
        skipped = 0 if computed else skipped + 1
        path += [step] * computed
    return path


@functools.cache
def grown(steps: int, budget: int, warm: int, window: float) -> list[int] | None:
    """The schedule of exactly ``budget`` steps with the least flex; None where there is none."""
    for flex in np.arange(0.0, 12.0, 0.01):
        path = growing(steps, warm, window, float(flex))
        if len(path) == budget:
            return path
    return None


def spectrum(
    steps: int, budget: int, *, warm: int, window: float, degree: int, penalty: float, w: float, what: str
) -> Scheduled:
    """Raises ``ValueError`` where no flex makes the budget."""
    path = grown(steps, budget, warm, window)
    if path is None:
        raise ValueError(f"no window growth computes {budget} of {steps} steps after {warm}")
    return Scheduled(path, functools.partial(mixed, steps=steps, degree=degree, penalty=penalty, w=w), what)
