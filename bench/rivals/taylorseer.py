"""TaylorSeer (arXiv 2503.06923): features forecast by a Taylor series in the step's number.

With f the features of computed steps and d their distance in steps, the factors are renewed at every computed step,

    F_0 = f,    F_(k+1) = (F_k - F_k of the computed step before) / d,    stand-in = sum_k F_k (i - j)^k / k!

up to ``order``, or as far as computed steps allow; j is the last computed step.  The paper's release forecasts what
every module of every block returns; forecasting once, at the end of the stack, is what its authors' later versions and
diffusers' lite mode do (DPCache's authors report the same fidelity at a fraction of the memory), and what is done here.
The first ``warm`` steps are computed, then every N-th; here N need not be whole, so that every budget is met exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .loop import Scheduled


def factors(known: Sequence[int], order: int, rows: np.ndarray | None = None) -> list[np.ndarray]:
    """F_0 .. F_order after the computed steps ``known``, as weights of ``rows``' columns (of the known ones)."""
    rows = np.eye(len(known)) if rows is None else rows
    found: list[np.ndarray] = []
    for n, row in enumerate(rows):
        new = [row]
        for factor in found[:order]:
            new.append((new[-1] - factor) / (known[n] - known[n - 1]))
        found = new
    return found


def taylor(known: Sequence[int], step: int, order: int) -> np.ndarray:
    """The stand-in's weights of the known steps."""
    ahead = step - known[-1]
    return sum(f * ahead**k / math.factorial(k) for k, f in enumerate(factors(known, order)))


def spaced(steps: int, budget: int, warm: int, *, last: bool = True, power: float = 1.0) -> list[int]:
    """``budget`` steps: the first ``warm``, then evenly spaced ones, the very last step among them if ``last``.

    With ``power`` > 1 the gaps grow.  Steps that rounding would make equal are moved on to the next free one.
    """
    path, count = list(range(warm)), budget - warm
    end = steps - 1 if last else steps - (steps - warm + 1) / (count + 1)
    for k in range(1, count + 1):
        at = round(warm - 1 + (end - warm + 1) * (k / count) ** power)
        path.append(min(max(at, path[-1] + 1), steps - count + k - 1))
    return path


def taylorseer(steps: int, budget: int, *, order: int, warm: int, what: str, last: bool) -> Scheduled:
    path = spaced(steps, budget, warm, last=last)
    return Scheduled(path, lambda known, step: taylor(known, step, order), what)
