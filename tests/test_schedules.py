"""The schedule solver against every path there is, and its two implementations against one another."""

from __future__ import annotations

import importlib.util
import itertools
import math
import random
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from vaccel.planning import schedules
from vaccel.planning.schedules import Edge, Path, solve

OBJECTIVES = ("leximax", "sum")
IMPLS = ("python", "cpp") if schedules.LOADED else ("python",)
needs_cpp = pytest.mark.skipif(not schedules.LOADED, reason="the compiled core is not built")
GRAPHS, SEEDS = 12_000, 4
DRAWS = {
    "few values": lambda rng: rng.choice((0.0, 0.5, 1.0, 2.0)),
    "two values": lambda rng: float(rng.random() < 0.5),
    "all different": lambda rng: rng.random(),
    "some infinite": lambda rng: rng.choice((0.25, 1.0, math.inf)),
}


def graph(rng: random.Random, steps: int, count: int, costs: Sequence[int] = range(4), gap: int = 99) -> list[Edge]:
    """Random edges in random order, none longer than ``gap``, parallel ones among them."""
    draw, edges = rng.choice(list(DRAWS.values())), []
    for _ in range(count):
        start = rng.randrange(steps - 1)
        end = rng.randint(start + 1, min(steps - 1, start + gap))
        edges.append(Edge(start, end, rng.choice(costs), draw(rng)))
    return edges


def every_path(steps: int, edges: list[Edge]) -> list[tuple[int, ...]]:
    """All of them, as edge indices."""
    leaving = [[i for i, e in enumerate(edges) if e.start == step] for step in range(steps)]
    found, growing = [], [((), 0)]
    while growing:
        path, at = growing.pop()
        if at == steps - 1:
            found.append(path)
        growing += [((*path, i), edges[i].end) for i in leaving[at]]
    return found


def best_values(edges: list[Edge], paths: list[tuple[int, ...]], objective: str) -> dict:
    """cost -> the least value of all paths with it."""
    best: dict = {}
    for path in paths:
        errors = [edges[i].error for i in path]
        # A loop: from Python 3.12 on `sum` compensates, which the solver does not.
        value = tuple(sorted(errors, reverse=True)) if objective == "leximax" else list_sum(errors)
        cost = sum(edges[i].cost for i in path)
        best[cost] = min(value, best.get(cost, value))
    return best


def list_sum(errors: list[float]) -> float:
    return list(itertools.accumulate(errors, initial=0.0))[-1]


def values(found: dict[int, Path], edges: list[Edge], steps: int, objective: str) -> dict:
    """cost -> value, after a look at whether the paths are paths and say what their edges say."""
    for cost, path in found.items():
        chosen = [edges[i] for i in path.edges]
        assert path.cost == cost == sum(e.cost for e in chosen)
        assert path.error == tuple(sorted((e.error for e in chosen), reverse=True))
        visited = path.nodes(edges)
        assert (visited[0], visited[-1]) == (0, steps - 1)
        assert [e.start for e in chosen] == list(visited[:-1])
    if objective == "leximax":
        return {cost: path.error for cost, path in found.items()}
    return {cost: list_sum([edges[i].error for i in path.edges]) for cost, path in found.items()}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_equals_brute_force(seed):
    rng, reached = random.Random(seed), 0
    for _ in range(GRAPHS // SEEDS):
        steps = rng.randint(2, 12)
        edges = graph(rng, steps, rng.randint(1, 4 * steps))
        paths = every_path(steps, edges)
        reached += bool(paths)
        for objective in OBJECTIVES:
            expected = best_values(edges, paths, objective)
            solved = [solve(steps, edges, objective=objective, impl=impl) for impl in IMPLS]
            assert values(solved[0], edges, steps, objective) == expected
            assert list(solved[0]) == sorted(expected)
            assert all(found == solved[0] for found in solved), "the implementations chose different paths"
    assert reached > GRAPHS // SEEDS // 2, "most graphs should have a path"


@needs_cpp
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("steps", "gap", "costs"), [(30, 29, [1]), (60, 8, range(6)), (60, 8, [0, 10**15]), (120, 5, [1])]
)
def test_both_choose_the_same_paths(objective, steps, gap, costs):
    rng = random.Random(steps)
    for _ in range(4):
        edges = graph(rng, steps, 4 * steps, costs, gap)
        edges += [Edge(i, i + 1, costs[0], 0.5) for i in range(steps - 1)]  # there is a path
        python = solve(steps, edges, objective=objective, impl="python")
        assert solve(steps, edges, objective=objective, impl="cpp") == python
        assert solve(steps, edges, objective=objective) == python
        assert len(python) > 1


def test_leximax_looks_beyond_the_worst_error():
    edges = [Edge(0, 1, 1, 3.0), Edge(1, 2, 1, 2.0), Edge(1, 2, 1, 1.0), Edge(0, 2, 2, 3.0)]
    assert solve(3, edges[:3])[2] == Path((0, 2), (3.0, 1.0), 2)
    assert solve(3, edges)[2] == Path((3,), (3.0,), 2), "a path that ends first is smaller"


def test_objectives_differ():
    edges = [Edge(0, 1, 1, 2.0), Edge(1, 3, 1, 2.0), Edge(0, 2, 1, 3.0), Edge(2, 3, 1, 0.0)]
    assert solve(4, edges)[2].edges == (0, 1)
    assert solve(4, edges, objective="sum")[2].edges == (2, 3)


@pytest.mark.parametrize("impl", IMPLS)
def test_small_runs_and_costs_no_path_has(impl):
    assert solve(1, [], impl=impl) == {0: Path((), (), 0)}
    assert solve(2, [], impl=impl) == {}
    edges = [Edge(0, 1, 7, 0.5), Edge(0, 1, 4, 1.0), Edge(0, 1, 7, 0.25)]
    assert solve(2, edges, impl=impl) == {4: Path((1,), (1.0,), 4), 7: Path((2,), (0.25,), 7)}
    assert solve(3, edges, impl=impl) == {}, "the last step is out of reach"


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("impl", IMPLS)
def test_the_first_of_equals_stays(impl, objective):
    edges = [Edge(2, 3, 1, 1.0), Edge(1, 3, 1, 1.0), Edge(0, 2, 1, 0.0), Edge(0, 1, 1, 0.0), Edge(0, 1, 1, -0.0)]
    assert solve(4, edges, objective=objective, impl=impl)[2].edges == (3, 1)


@pytest.mark.parametrize("impl", IMPLS)
def test_numbers_of_numpy(impl):
    edge = (np.int32(0), np.int64(1), np.uint8(2), np.float32(0.5))
    (path,) = solve(2, [edge], impl=impl).values()
    assert path == Path((0,), (0.5,), 2)
    assert path.nodes([edge]) == (0, 1)
    assert all(type(v) in (int, float) for v in (*path.edges, *path.error, path.cost))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ((1, 1, 1, 0.0), "start < end"),
        ((2, 1, 1, 0.0), "start < end"),
        ((-1, 1, 1, 0.0), "start < end"),
        ((1, 3, 1, 0.0), "end < 3"),
        ((0, 1, -1, 0.0), "cost must be >= 0"),
        ((0, 1, 2**62, 0.0), "below 2^63"),
        ((0, 1, 1.0, 0.0), "whole numbers"),
        ((0, 1, 1, "much"), "error a number"),
        ((0, 1, 1), "whole numbers"),
        ((0, 1, 1, -0.5), "error must be >= 0"),
        ((0, 1, 1, math.nan), "not NaN"),
    ],
)
def test_an_edge_that_cannot_be_is_named(impl, edge, message):
    with pytest.raises(ValueError, match=f"edge 1: .*{message.replace('^', '.')}"):
        solve(3, [Edge(0, 1, 1, 0.0), edge], impl=impl)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_nodes": 0}, "num_nodes"),
        ({"objective": "max"}, "known: 'leximax', 'sum'"),
        ({"impl": "cuda"}, "known: 'cpp', 'python'"),
    ],
)
def test_other_arguments_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        solve(**{"num_nodes": 2, "edges": [Edge(0, 1, 1, 0.0)], **kwargs})


def test_without_the_compiled_core(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaccel._solver", None)  # importing it now fails
    spec = importlib.util.spec_from_file_location("vaccel.planning.schedules_without", schedules.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.LOADED
    edges = [module.Edge(0, 1, 1, 0.5)]
    assert module.solve(2, edges) == module.solve(2, edges, impl="python") == {1: ((0,), (0.5,), 1)}
    with pytest.raises(ValueError, match=r"impl='cpp' cannot run: (not built|left out)"):
        module.solve(2, edges, impl="cpp")


@needs_cpp
def test_the_core_refuses_what_would_lead_it_astray():
    from vaccel import _solver

    def arrays(start: int, end: int, cost: int, error: float) -> list[np.ndarray]:
        return [*(np.array([v], np.int64) for v in (start, end, cost)), np.array([error])]

    assert _solver.solve(2, *arrays(0, 1, 3, 0.5), "sum") == {3: [0]}
    backwards = ((0, 2, 1, 0.0), (1, 0, 1, 0.0), (-1, 1, 1, 0.0))
    for edge in (*backwards, (0, 1, -1, 0.0), (0, 1, 2**62, 0.0), (0, 1, 1, math.nan)):
        with pytest.raises(ValueError, match="edge 0"):
            _solver.solve(2, *arrays(*edge), "leximax")
    start, end, cost, error = arrays(0, 1, 1, 0.0)
    with pytest.raises(ValueError, match="one length"):
        _solver.solve(2, start, end, cost, error[:0], "sum")
    with pytest.raises(ValueError, match="one dimension"):
        _solver.solve(2, start[None], end, cost, error, "sum")
    with pytest.raises(ValueError, match="unknown objective"):
        _solver.solve(2, start, end, cost, error, "max")
    with pytest.raises(TypeError):
        _solver.solve(2, start, end, error, error, "sum")
