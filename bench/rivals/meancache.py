"""MeanCache (arXiv 2601.19961, ICLR 2026): average velocities in place of the last one, on a path of least error.

A flow moves from time s_i to s_(i+1) by v_i.  Where the model does not run, the last velocity is corrected by how
velocities have turned over the last ``span`` steps, computed or not (the release's ``compute_current_jvp``): with
r = n - span and u the average velocity from s_r to s_n,

    J = (v_r - u) / (s_n - s_r),    v^_n = v_(n-1) - J (s_(n+1) - s_n)

For span 1 under Euler J is 0 and the last velocity is used again.  On full runs, the stand-ins of the steps between
computed ones i < j have a stability deviation, here the mean absolute error of the average velocity that they make up,

    L_K(i, j) = mean |sum over n = i + 1 .. j - 1 of (v^_n - v_n) (s_(n+1) - s_n)| / (s_i - s_j)

An edge (i, j) takes the best span K.  The path of exactly B computed steps has the least sum of L ^ gamma, with
gamma > 1 so that peaks are suppressed (Peak-Suppressed Shortest Path).

From the release: the stand-in, spans 1 to 6 chosen for each edge, the first step computed.  From the paper as others
quote it: the graph, gamma, the budget.  Our reading: the error's norm, and what the sum runs over; as an alternative,
``displacement`` leaves the division out, which weighs long stretches more, and the better of the two stands.  The
average u is taken from the velocities (sum of v ds / sum of ds), not from latents as in the release, which is the same
under Euler and does not mix in a multistep solver's corrections.  On a model that predicts noise the method runs in
the coordinates of ``vaccel.planning.flow``, or on the noise itself over the time sigma / alpha, in which DDIM is Euler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .loop import Scheduled

SPANS = range(1, 7)


def extended(rows: list[np.ndarray], times: Sequence[float], span: int) -> np.ndarray:
    """The stand-in's weights for step ``len(rows)``, given those of every step before it."""
    n = len(rows)
    r = n - min(span, n)
    moves = np.diff(times[r : n + 1])
    average = sum(row * move for row, move in zip(rows[r:], moves, strict=True)) / (times[n] - times[r])
    turn = (rows[r] - average) / (times[n] - times[r])
    return rows[-1] - turn * (times[n + 1] - times[n])


def deviations(runs: Sequence[Tensor], times: Sequence[float], *, displacement: bool = False) -> np.ndarray:
    """L [T, T + 1, spans] from every run's guided velocities [T, n]; infinite where i < j does not hold."""
    steps = len(runs[0])
    found = np.full((steps, steps + 1, len(SPANS)), np.inf)
    unit = np.eye(steps)
    for i in range(steps):
        found[i, i + 1] = 0.0
        errors = []
        for span in SPANS:
            rows, error = list(unit[: i + 1]), np.zeros(steps)
            for n in range(i + 1, steps):
                rows.append(extended(rows, times, span))
                error = error + (rows[n] - unit[n]) * (times[n + 1] - times[n])
                errors.append(error if displacement else error / (times[i] - times[n + 1]))
        if errors:
            weights = torch.tensor(np.array(errors), dtype=runs[0].dtype)
            means = sum((weights @ run).abs().mean(1).double() for run in runs) / len(runs)
            found[i, i + 2 :] = means.reshape(len(SPANS), -1).numpy().T
    return found


def path_of(cost: np.ndarray, budget: int) -> list[int]:
    """The path from step 0 to the run's end over ``budget`` computed steps with the least sum of cost [T, T + 1]."""
    steps = len(cost)
    best, parents = np.full(steps + 1, np.inf), []
    best[0] = 0.0
    for _ in range(budget):
        sums = best[:steps, None] + cost
        parents.append(np.argmin(sums, axis=0))
        best = sums.min(axis=0)
    path = [steps]
    for parent in reversed(parents):
        path.append(int(parent[path[-1]]))
    return path[:0:-1]


@dataclasses.dataclass
class _Formula:
    """The stand-ins' weights of the computed steps, with each stretch's own span."""

    times: Sequence[float]
    spans: dict[int, int]

    def __call__(self, known: Sequence[int], step: int) -> np.ndarray:
        rows, unit, last = [], iter(np.eye(len(known))), 0
        for n in range(step + 1):
            if n in known:
                rows.append(next(unit))
                last = n
            else:
                rows.append(extended(rows, self.times, self.spans[last]))
        return rows[step]


def meancache(
    deviation: np.ndarray, times: Sequence[float], budget: int, *, gamma: float, what: str = "output"
) -> Scheduled:
    """``deviation`` as ``deviations`` made it over these ``times``, of the same ``what``."""
    cost = deviation.min(axis=2) ** gamma
    path = path_of(cost, budget)
    ends = [*path[1:], len(cost)]
    spans = {i: SPANS[int(np.argmin(deviation[i, j]))] for i, j in zip(path, ends, strict=True)}
    return Scheduled(path, _Formula(times, spans), what)
