"""The best path of every total cost, through steps whose edges lead forward: plain tuples, readable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def solve(num_nodes: int, edges: Sequence[tuple[int, int, int, float]], objective: str) -> dict[int, list[int]]:
    """Edges (start, end, cost, error) -> {cost: indices of the best path's edges}, costs ascending.

    ``objective`` is "leximax" or "sum".  Keeping one way to every (step, cost) is enough: adding the same error to two
    sums, or to two sorted tuples, keeps their order, so what is best to a step stays best however the path goes on.
    Of ways equally good the first stays: edges are taken in the order of their start, then of their index.
    """
    nothing, add = OBJECTIVES[objective]
    best: list[dict[int, tuple[Any, tuple[int, ...]]]] = [{} for _ in range(num_nodes)]  # cost -> value, edges
    best[0][0] = nothing, ()
    for i in sorted(range(len(edges)), key=lambda i: edges[i][0]):  # edges lead forward: a start is done by its turn
        start, end, cost, error = edges[i]
        for before, (value, path) in best[start].items():
            value, total = add(value, error), before + cost
            if total not in best[end] or value < best[end][total][0]:
                best[end][total] = value, (*path, i)
    return {cost: list(path) for cost, (_, path) in sorted(best[-1].items())}


def _with(errors: tuple[float, ...], error: float) -> tuple[float, ...]:
    """Descending, as leximax compares them."""
    return tuple(sorted((*errors, error), reverse=True))


def _plus(total: float, error: float) -> float:
    return total + error


#: The value of a path without edges, and how one more edge changes it; the smaller value is the better.
OBJECTIVES: dict[str, tuple[Any, Callable[[Any, float], Any]]] = {"leximax": ((), _with), "sum": (0.0, _plus)}
