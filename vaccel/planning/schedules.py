"""Schedules from measured errors: which steps to compute, for every number of computed steps at once.

A run's steps are the nodes 0 ... T-1 of a graph.  An edge (i, j) computes step j and skips the steps between; it has
a measured error of the result and a cost.  A path from step 0 to step T-1 is a
schedule.  In LeMiCa (arXiv 2511.00090) every edge costs one computed step and the largest errors are minimised:
"leximax".
"""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..reference import schedule as reference

IMPLS = ("cpp", "python")
OBJECTIVES = tuple(reference.OBJECTIVES)


def _load() -> tuple[ModuleType | None, str]:
    """(the compiled core or None, its path or why it is missing)."""
    try:
        module = importlib.import_module("vaccel._solver")
    except ModuleNotFoundError:
        return None, "not built (no vaccel/_solver.*so for this Python)"
    except ImportError as error:
        return None, f"_solver does not load: {error}"
    return module, str(module.__file__)


_SOLVER, DETAIL = _load()
#: Whether the compiled core is available; ``DETAIL`` is its path, or why it is not.
LOADED = _SOLVER is not None


class Edge(NamedTuple):
    """An edge from one step of a run to a later one.

    ``cost`` is a whole number >= 0, in any unit; ``error`` is >= 0, infinity allowed.
    """

    start: int
    end: int
    cost: int
    error: float


class Path(NamedTuple):
    """A path from step 0 to the last step.

    Attributes:
        edges: indices into the edges that were given, in the order of the steps.
        error: those edges' errors, descending.
        cost: the sum of those edges' costs, without step 0's.
    """

    edges: tuple[int, ...]
    error: tuple[float, ...]
    cost: int

    def nodes(self, edges: Sequence[Edge]) -> tuple[int, ...]:
        """The steps it visits, step 0 and the last among them; ``edges`` are those that ``solve`` was given."""
        return (0, *(edges[i][1] for i in self.edges))


def solve(
    num_nodes: int, edges: Iterable[Edge], *, objective: str = "leximax", impl: str | None = None
) -> dict[int, Path]:
    """The best path from step 0 to step ``num_nodes - 1``, for every cost that a path can have.

    Exact under either objective, and the same path from either implementation.  Of paths equally good the one found
    first is taken: steps ascend, and edges into a step come in the order of their start, then of their index.

    Args:
        num_nodes: T, the number of steps.
        edges: any number, also several between the same two steps.  Give costs in a coarse unit: time and memory grow
            with the number of different costs at which a step can be reached.
        objective: "leximax", where errors in descending order are compared one by one and the smaller wins, a path
            that ends first being smaller; or "sum", the sum of errors, added in fp64 in the order of the path.
        impl: "cpp" or "python"; by default C++ if it was built.

    Returns:
        cost -> path, costs ascending; a cost that no path has is absent.

    Raises ``ValueError`` for an edge that leads backwards or out of range, a cost that is negative or no whole number,
    an error that is negative or NaN, an unknown objective or ``impl``, or an ``impl`` that cannot run here.
    """
    if num_nodes < 1:
        raise ValueError(f"solve: num_nodes must be >= 1, got {num_nodes}")
    if objective not in OBJECTIVES:
        raise ValueError(f"solve: unknown objective {objective!r}; known: {', '.join(map(repr, OBJECTIVES))}")
    compiled = _compiled(impl)
    checked = [_checked(i, edge, num_nodes) for i, edge in enumerate(edges)]
    if compiled is None:
        found = reference.solve(num_nodes, checked, objective)
    else:
        found = compiled.solve(num_nodes, *_arrays(checked), objective)
    return {cost: _path(path, cost, checked) for cost, path in found.items()}


def _compiled(impl: str | None) -> ModuleType | None:
    """The compiled core, or None where ``impl`` asks for Python or it is not built."""
    if impl is not None and impl not in IMPLS:
        raise ValueError(f"solve: unknown impl {impl!r}; known: {', '.join(map(repr, IMPLS))}")
    if impl == "cpp" and _SOLVER is None:
        raise ValueError(f"solve: impl='cpp' cannot run: {DETAIL}")
    return None if impl == "python" else _SOLVER


def _checked(index: int, edge: Any, num_nodes: int) -> Edge:
    """The edge with Python's own number types.  Raises ``ValueError`` for an invalid one."""
    try:
        start, end, cost, error = edge
        indices = (operator.index(start), operator.index(end), operator.index(cost))
        edge = Edge(*indices, float(error))
    except (TypeError, ValueError):
        wanted = "start, end and cost must be whole numbers, error a number"
        raise ValueError(f"solve: edge {index}: {wanted}; got {edge}") from None
    if not 0 <= edge.start < edge.end < num_nodes:
        raise ValueError(f"solve: edge {index}: 0 <= start < end < {num_nodes} must hold, got {edge}")
    # So that the costs of a path cannot overflow an int64.
    if not 0 <= edge.cost * num_nodes < 2**63:
        raise ValueError(f"solve: edge {index}: cost must be >= 0 and below 2^63 / {num_nodes}, got {edge}")
    if math.isnan(edge.error) or edge.error < 0:
        raise ValueError(f"solve: edge {index}: error must be >= 0 and not NaN, got {edge}")
    return edge


def _arrays(edges: list[Edge]) -> list[np.ndarray]:
    """Start, end, cost (int64) and error (float64), each [edges]."""
    columns = list(zip(*edges, strict=True)) or [()] * 4
    dtypes = (np.int64, np.int64, np.int64, np.float64)
    return [np.array(column, dtype) for column, dtype in zip(columns, dtypes, strict=True)]


def _path(indices: list[int], cost: int, edges: list[Edge]) -> Path:
    return Path(tuple(indices), tuple(sorted((edges[i].error for i in indices), reverse=True)), cost)
