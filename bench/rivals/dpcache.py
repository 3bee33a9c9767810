"""DPCache (arXiv 2602.22654): the computed steps of least cost, a step's error depending on the two computed before it.

From full runs (about ten in the paper), with h the last block's features and h^(i, j) their Taylor forecasts after the
computed steps i < j (TaylorSeer's, of second order by default),

    C[i, j, k] = sum over steps n = j + 1 .. k of mean |h_n - h^_n(i, j)|,    averaged over runs        (equation 6)

and the path 0, 1, .. M - 1, then any (M = 3 in the paper), of exactly K steps with the least sum of C over its triples.
The paper's recurrence keeps one predecessor for each end; here both steps before are kept, so the minimum is exact
(as in diffusers' version).  The second derivative at i uses step i - 1, as the reference implementation does: three
indices cannot tell the computed step before.  The last triple ends with the run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .loop import Scheduled
from .taylorseer import taylor


def costs(runs: Sequence[Tensor], order: int) -> np.ndarray:
    """C [T, T, T + 1] from every run's features [T, n]; infinite where i < j < k does not hold."""
    steps = len(runs[0])
    found = np.full((steps, steps, steps + 1), np.inf)
    for j in range(1, steps):
        later = range(j + 1, steps)
        rows, target = [], []
        for i in range(j):
            for n in later:
                row = np.zeros(steps)
                known = [i - 1, i, j] if i and order > 1 else [i, j]
                row[known] = taylor(known, n, order)
                rows.append(row)
                target.append(n)
        found[:j, j, steps] = 0.0
        if rows:
            weights = torch.tensor(np.array(rows), dtype=runs[0].dtype)
            errors = sum((weights @ run - run[target]).abs().mean(1).double() for run in runs) / len(runs)
            summed = errors.reshape(j, len(later)).cumsum(1).numpy()
            found[:j, j, j + 1 : steps] = summed
            found[:j, j, steps] = summed[:, -1]
    return found


def path_of(cost: np.ndarray, budget: int, warm: int) -> list[int]:
    """The computed steps of least summed cost; ``warm`` >= 2 first ones are fixed."""
    steps = len(cost)
    best = np.full((steps, steps + 1), np.inf)
    best[warm - 2, warm - 1] = 0.0
    parents = []
    for count in range(warm, budget + 1):  # the last transition ends the run
        ends = [steps] if count == budget else range(warm, steps)
        new, parent = np.full_like(best, np.inf), np.zeros(best.shape, dtype=int)
        for j in range(warm - 1, steps):
            for k in ends:
                if k > j:
                    sums = best[:j, j] + cost[:j, j, k]
                    parent[j, k] = np.argmin(sums)
                    new[j, k] = sums[parent[j, k]]
        best = new
        parents.append(parent)
    k, path = steps, []
    j = int(np.argmin(best[:, steps]))
    for parent in reversed(parents):
        path.append(j)
        j, k = int(parent[j, k]), j
    return [*range(warm - 1), *reversed(path)]


def dpcache(cost: np.ndarray, budget: int, *, order: int, warm: int, what: str) -> Scheduled:
    """``cost`` as ``costs`` made it, of the same ``what`` and ``order``."""
    path = path_of(cost, budget, warm)
    return Scheduled(path, functools.partial(_weights, order=order), what)


def _weights(known: Sequence[int], step: int, order: int) -> np.ndarray:
    return taylor(known, step, order)
