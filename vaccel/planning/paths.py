"""Paths: which steps to compute for every budget, by the errors of what lies between them.

The error of skipping steps depends on the last few computed ones, so those are the nodes of a graph whose best paths
``vaccel.planning.schedules`` finds for every number of computed steps at once.  The errors are closed forms over the
inner products of full runs' velocities (``vaccel.planning.gram``), and the factor by which an error of the latents that
enter a step has grown at the end of the run is measured separately: ``error_growth``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .gram import MOST_ORDER, RIDGE, Gram, blocks, ridged
from .schedules import UnitPaths, check_size, solve_units

#: "squares" minimises the sum of squared errors, which is how uncorrelated errors add up.
OBJECTIVES = ("leximax", "sum", "squares")
#: Largest distance, in steps, from one computed step to the next in a plan.
MAX_GAP = 15


@dataclasses.dataclass(frozen=True)
class Plan:
    """A path: its computed steps, and the error of the skipped steps after each of them, in their order.

    ``predicted`` is the expected error of the finished latents (rms), with the errors taken as uncorrelated.
    """

    full_steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def predicted(self) -> float:
        return math.sqrt(math.fsum(e * e for e in self.errors))


def states(num_steps: int, order: int, max_gap: int) -> list[tuple[int, ...]]:
    """The nodes of the graph: a computed step and the order - 1 computed steps before it, newest first; ascending.

    Near the beginning of a run, where fewer steps have been computed, a node has fewer.
    """
    return [tuple(f for f in known if f >= 0) for known in _nodes(num_steps, order, max_gap).tolist()]


def _nodes(num_steps: int, order: int, max_gap: int) -> np.ndarray:
    """``states`` as rows [n, order], with -1 where there are no more steps."""
    found = np.arange(num_steps)[:, None]
    for _ in range(order - 1):
        last = found[:, -1]
        ways = np.where(last > 0, np.minimum(last, max_gap), 1)  # the step before: one of so many, or none
        row = np.repeat(np.arange(len(found)), ways)
        number = np.arange(len(row)) - np.repeat(np.cumsum(ways) - ways, ways)
        before = np.where(last[row] > 0, np.maximum(last[row] - max_gap, 0) + number, -1)
        found = np.column_stack([found[row], before])
    return found


def edge_errors(
    gram: Gram, error_growth: Sequence[float], known: Sequence[Sequence[int]] | np.ndarray, max_gap: int, per: str,
    corrected: bool = False,
) -> np.ndarray:  # fmt: skip
    """[states, max_gap]: the error at the end of the run of computing the next step 1 ... max_gap steps after a state.

    This is the error of the latents at that step, times ``error_growth`` there; where that is step T, which nothing
    computes, all the remaining ones are skipped.  Infinite beyond it.  Where
    the next step is ``corrected`` (``solver_weights``), what it cannot make up for lies between that and the error that
    its own velocity and the known ones leave unexplained, times the growth of the step after it: their geometric mean
    is taken.  It ranked paths by their measured errors better than either.

    Args:
        known: states of one length, newest step first.
    """
    steps, growth = gram.num_steps, np.array([*error_growth, 1.0, 1.0])  # after the last step nothing grows
    errors = np.full((len(known), max_gap), np.inf)
    for begin in range(0, len(known), 512):  # bounds the memory
        part = np.array(known[begin : begin + 512])
        ends = part[:, :1] + np.arange(1, max_gap + 1)  # where each stretch ends: it skips what lies before
        at = np.minimum(ends, steps)
        before, after = _stretches(gram, part, at, per)
        found = np.sqrt(before / gram.elements) * growth[at]
        if corrected:
            paid = np.sqrt(found * np.sqrt(after / gram.elements) * growth[at + 1])
            found = np.where(at < steps, paid, found)
        errors[begin : begin + 512] = np.where(ends <= steps, found, np.inf)
    return errors


def _stretches(gram: Gram, known: np.ndarray, ends: np.ndarray, per: str) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors [n, m] of the latents where all steps after known[:, 0] and before ``ends`` [n, m] are skipped.

    They are e = sum_i ds_i (v_i - vhat_i) over the skipped steps.  The second is what remains of e once the velocity of
    the step at the end, and the known ones, explain of it what they can; without meaning where that is step T.
    """
    products, ds = gram.weighed(per), gram.widths
    summed = np.cumsum(ds[:, None] * products, axis=1)  # [G, T, T]: sum_(m <= a) ds_m v_m . v_b
    first = known[:, :1]
    inverse = np.linalg.inv(ridged(blocks(products, known, known)))
    of_known = summed[:, (ends - 1)[:, :, None], known[:, None]] - summed[:, first[:, :, None], known[:, None]]
    by = np.minimum(ends, len(ds) - 1)
    of_end = summed[:, ends - 1, by] - summed[:, first, by]
    # |sum_i ds_i v_i|^2 grows by a step's own square and twice its product with the sum before it.
    skipped = np.minimum(first + np.arange(ends.shape[1]), len(ds) - 1)  # of which the first is known, and adds nothing
    steps = 2 * ds[skipped] * (summed[:, np.maximum(skipped - 1, 0), skipped] - summed[:, first, skipped])
    steps += ds[skipped] ** 2 * products[:, skipped, skipped]
    steps[:, :, 0] = 0
    square = np.cumsum(steps, axis=2)
    end_known = products[:, by[:, :, None], known[:, None]]
    explained = np.einsum("gnma,gnab->gnmb", of_known, inverse)
    before = np.maximum(square - np.einsum("gnmb,gnmb->gnm", explained, of_known), 0)
    shared = of_end - np.einsum("gnmb,gnmb->gnm", explained, end_known)
    own = products[:, by, by]
    new = own - np.einsum("gnma,gnab,gnmb->gnm", end_known, inverse, end_known, optimize=True)
    after = before - shared * shared / np.maximum(new, RIDGE * own + np.finfo(float).tiny)
    return before.sum(axis=0), np.maximum(after, 0).sum(axis=0)


def path_errors(
    gram: Gram, error_growth: Sequence[float], path: Sequence[int], order: int, per: str, corrected: bool = False
) -> tuple[float, ...]:
    """The error at the end of the run of the steps skipped after each computed one of a path, as ``edge_errors``."""
    errors = []
    groups: dict[int, list[int]] = {}
    path = [*path, gram.num_steps]
    for k in range(1, len(path)):
        groups.setdefault(min(k, order), []).append(k)
    for count, places in sorted(groups.items()):  # ascending in k too: only the first states are shorter
        known = [path[k - count : k][::-1] for k in places]
        gaps = [path[k] - path[k - 1] for k in places]
        found = edge_errors(gram, error_growth, known, max(gaps), per, corrected)
        errors += [float(row[gap - 1]) for row, gap in zip(found, gaps, strict=True)]
    return tuple(errors)


class Plans(Mapping[int, Plan]):
    """Plans by budget, each put together when it is asked for.

    Args:
        paths: the edges of each budget's path.
        end, error: [edges], the step that an edge leads to and the error of those it skips.
        last: how many of a path's edges, at its end, compute no step: a budget is one more than those that do.
    """

    def __init__(self, paths: UnitPaths, end: np.ndarray, error: np.ndarray, last: int = 0):
        self._paths, self._error, self._last = paths, error, last
        number = [*range(int(end.max(initial=0)) + 1)]
        self._end = np.array(number, object)[end]  # objects shared by all paths

    def __getitem__(self, budget: int) -> Plan:
        edges = self._paths[budget - 1 + self._last]
        return Plan((0, *self._end[edges[: budget - 1]].tolist()), tuple(self._error[edges].tolist()))

    def __contains__(self, budget: object) -> bool:
        return type(budget) is int and budget - 1 + self._last in self._paths

    def __iter__(self) -> Iterator[int]:
        return (count + 1 - self._last for count in self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def plans(
    gram: Gram, error_growth: Sequence[float], *, order: int = 2, max_gap: int = MAX_GAP,
    per: str = "channel", objective: str = "leximax", corrected: bool = False,
) -> Mapping[int, Plan]:  # fmt: skip
    """The best path of every budget, the number of computed steps, step 0 among them.

    The last step is one like any other: that of a solver which ends with a tiny step is hardly worth computing.
    The error of skipping steps depends on the last ``order`` computed steps, so those are the nodes of the graph, whose
    best paths ``vaccel.planning.schedules.solve_units`` finds exactly, all in one pass.

    Args:
        error_growth: [T], the factor by which an error of the latents that enter a step has grown at the end.
        order: K, the number of velocities that a forecast combines.
        max_gap: largest distance, in steps, from one computed step to the next.
        corrected: whether computed steps make up for the errors of the forecasts before them (``solver_weights``).

    Raises ``ValueError`` for settings out of range, or with which there would be too many ways through the steps.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {objective!r}")
    if not 1 <= order <= MOST_ORDER or max_gap < 1 or len(error_growth) != gram.num_steps:
        raise ValueError(
            f"order and max_gap must be >= 1, order at most {MOST_ORDER}, and error_growth needs {gram.num_steps} "
            f"values, one for each step: got {order}, {max_gap} and {len(error_growth)} values"
        )
    max_gap = min(max_gap, max(gram.num_steps - 1, 1))
    try:
        check_size(gram.num_steps, gram.num_steps * max_gap**order)
    except ValueError as error:
        raise ValueError(f"order={order} and max_gap={max_gap}: {error}; make one of them smaller") from None
    nodes, last = _nodes(gram.num_steps, order, max_gap), gram.num_steps - 1
    errors = np.empty((len(nodes), max_gap))
    counts = (nodes >= 0).sum(axis=1)
    for count in np.unique(counts):
        group = counts == count
        errors[group] = edge_errors(gram, error_growth, nodes[group, :count], max_gap, per, corrected)
    if last:
        errors[0, last:] = np.inf  # one step alone is no run
    start, gap = np.nonzero(np.isfinite(errors))
    step = nodes[start, 0] + gap + 1  # which is computed next
    following = np.column_stack([step, nodes[start, : order - 1]])
    end = np.searchsorted(_keys(nodes, last + 1), _keys(following, last + 1))
    end[step > last] = len(nodes)  # the end of the run
    error = errors[start, gap]
    weights = error * error if objective == "squares" else error
    paths = solve_units(
        len(nodes) + 1, start, end, weights, np.array([len(nodes)]),
        objective="sum" if objective == "squares" else objective,
    )  # fmt: skip
    return Plans(paths, step, error, last=1)


def _keys(nodes: np.ndarray, last: int) -> np.ndarray:
    """One number a node [n], ascending as the nodes do."""
    keys = np.zeros(len(nodes), np.int64)
    for column in nodes.T:
        keys = keys * (last + 2) + column + 1
    return keys
