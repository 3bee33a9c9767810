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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..built import left_out
from ..reference import schedule as reference

IMPLS = ("cpp", "python")
OBJECTIVES = tuple(reference.OBJECTIVES)


def _load() -> tuple[ModuleType | None, str]:
    """(the compiled core or None, its path or why it is missing)."""
    try:
        module = importlib.import_module("vaccel._solver")
    except ModuleNotFoundError:
        return None, left_out("vaccel._solver") or "not built (no vaccel/_solver.*so for this Python)"
    except ImportError as error:
        return None, f"_solver does not load: {error}"
    if not hasattr(module, "solve_units"):
        return None, f"{module.__file__} is of an earlier vaccel, build it anew"
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


#: Without the compiled core: the most ways to compare, an edge taken after every number of edges that is possible.
MOST_IN_PYTHON = 10**7
#: With it: the most edges, for what a solve may hold in memory, and the most ways, for how long it may take.
MOST_EDGES, MOST_WAYS = 2 * 10**7, 2 * 10**9


class UnitPaths(Mapping[int, np.ndarray]):
    """The best paths where every edge costs one: number of edges -> the path's edges, int32, in order."""

    def __init__(self, counts: np.ndarray, first: np.ndarray, edges: np.ndarray):
        self._places = {int(count): place for place, count in enumerate(counts)}
        self._first, self._edges = first, edges

    def __getitem__(self, count: int) -> np.ndarray:
        place = self._places[count]
        return self._edges[self._first[place] : self._first[place + 1]]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def solve_units(
    num_nodes: int, start: np.ndarray, end: np.ndarray, error: np.ndarray, finals: np.ndarray,
    *, objective: str = "leximax", impl: str | None = None,
) -> UnitPaths:  # fmt: skip
    """The best path from node 0 to any of ``finals``, for every number of edges that a path can have, all at once.

    The paths are those of ``solve`` with a cost of one for every edge.  In memory there is, beside the graph, one byte
    for every node and number of edges (more where more than 254 edges lead into one node) and the paths themselves, 4
    bytes an edge.

    Args:
        start, end, error: [edges], of each edge.
        finals: where paths may end, ascending.
        objective, impl: as for ``solve``.

    Raises ``ValueError`` for an edge that leads backwards or out of range or has a negative error or NaN, for an
    unknown objective or ``impl``, and without the compiled core for a graph that Python would take too long for.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"solve: unknown objective {objective!r}; known: {', '.join(map(repr, OBJECTIVES))}")
    compiled = _compiled(impl)
    if compiled is not None:
        arrays = (np.ascontiguousarray(a, t) for a, t in ((start, np.int32), (end, np.int32), (error, np.float64)))
        found = compiled.solve_units(num_nodes, *arrays, np.ascontiguousarray(finals, np.int32), objective)
        return UnitPaths(*found)
    if len(start) * num_nodes > MOST_IN_PYTHON and _ways(num_nodes, start, end) > MOST_IN_PYTHON:
        raise ValueError(
            f"a graph of {num_nodes} nodes and {len(start)} edges takes the compiled schedule solver, which is "
            f"{DETAIL}: build vaccel with a C++ compiler and pybind11"
        )
    edges = list(zip(start.tolist(), end.tolist(), [1] * len(start), error.tolist(), strict=True))
    edges += [(node, num_nodes, 0, 0.0) for node in finals.tolist()]
    paths = {count: path[:-1] for count, path in reference.solve(num_nodes + 1, edges, objective).items()}
    first = np.cumsum([0, *map(len, paths.values())])
    return UnitPaths(np.array([*paths]), first, np.array([e for path in paths.values() for e in path], np.int32))


def check_size(num_steps: int, edges: int) -> None:
    """Raises ``ValueError`` for more edges than all budgets of a run of so many steps are solved for."""
    if edges > MOST_EDGES or edges * num_steps > 2 * MOST_WAYS:  # half of the steps in the mean
        most = min(MOST_EDGES, 2 * MOST_WAYS // num_steps)
        raise ValueError(
            f"{edges} ways to skip steps in a run of {num_steps} are too many, at most {most} are searched"
        )


def _ways(num_nodes: int, start: np.ndarray, end: np.ndarray) -> int:
    """How many ways all edges offer at most: for each, the numbers of edges that a path to its start may have."""
    longest = np.zeros(num_nodes, np.int64)
    for i in np.argsort(start, kind="stable").tolist():
        longest[end[i]] = max(longest[end[i]], longest[start[i]] + 1)
    return int((longest[start] + 1).sum())


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
