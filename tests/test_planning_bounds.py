"""Planning in bounds: all budgets from one solve, the same plans as path by path, and no count that allocates."""

from __future__ import annotations

import math
import random
import tracemalloc

import numpy as np
import pytest
import torch

import vaccel
from vaccel.methods import lemica
from vaccel.planning import artifacts, calibration, gram, paths, schedules
from vaccel.planning.calibration import packed
from vaccel.planning.gram import Gram
from vaccel.planning.paths import plans, states
from vaccel.planning.schedules import Edge, solve, solve_units

IMPLS = ("python", "cpp") if schedules.LOADED else ("python",)
needs_cpp = pytest.mark.skipif(not schedules.LOADED, reason="the compiled core is not built")
DRAWS = {
    "all different": lambda rng: rng.random(),
    "few values": lambda rng: rng.choice((0.0, 0.5, 1.0, 2.0)),
    "two values": lambda rng: float(rng.random() < 0.5),
    "some infinite": lambda rng: rng.choice((0.25, 1.0, math.inf, rng.random())),
}
HEAD = {
    "schema": artifacts.SCHEMA, "model": {"class": "M", "config": "c"}, "scheduler": {"class": "S", "config": {}},
    "call": {},
}  # fmt: skip


def found_by_solve(nodes: int, edges: list[tuple[int, int, float]], finals: list[int], objective: str) -> dict:
    """What ``solve`` finds where edges of no cost lead from the finals to one node more."""
    costing = [Edge(start, end, 1, error) for start, end, error in edges]
    ending = [Edge(node, nodes, 0, 0.0) for node in finals]
    return {
        cost: list(path.edges[:-1]) for cost, path in solve(nodes + 1, costing + ending, objective=objective).items()
    }


def found_by_units(nodes: int, edges: list[tuple[int, int, float]], finals: list[int], objective: str, impl: str):
    columns = np.array(edges, np.float64).reshape(-1, 3).T
    start, end = columns[:2].astype(np.int32)
    found = solve_units(nodes, start, end, columns[2], np.array(finals), objective=objective, impl=impl)
    return {count: path.tolist() for count, path in found.items()}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("objective", schedules.OBJECTIVES)
@pytest.mark.parametrize("draw", DRAWS)
def test_layers_find_the_paths_that_solve_finds(draw, objective, impl):
    """Small graphs of any shape, and some of more layers than values are kept of."""
    rng = random.Random(0)
    for case in range(400):
        nodes = rng.randint(1, 12) if case else 90
        if case and impl == "python" and case > 100:
            break
        gap = rng.choice((2, 4, 9)) if case else 6
        pairs = (
            [
                (i, rng.randint(i + 1, min(nodes - 1, i + gap)))
                for i in rng.choices(range(nodes - 1), k=60 if case else 0)
            ]
            if nodes > 1
            else []
        )
        pairs = pairs if case else [(i, j) for i in range(nodes) for j in range(i + 1, min(nodes, i + gap + 1))]
        edges = [(i, j, DRAWS[draw](rng)) for i, j in pairs]
        finals = sorted(rng.sample(range(nodes), rng.randint(1, min(nodes, 3))))
        assert found_by_units(nodes, edges, finals, objective, impl) == found_by_solve(nodes, edges, finals, objective)


def walk(steps: int, channels: int = 2) -> Gram:
    rng = np.random.default_rng(0)
    v = np.cumsum(rng.standard_normal((steps, channels, 40)), axis=0)
    return Gram(tuple(np.linspace(1, 0, steps + 1).tolist()), np.einsum("tcd,ucd->ctu", v, v)[None], channels * 40)


@pytest.mark.parametrize("objective", paths.OBJECTIVES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_plans_are_those_of_the_graph_edge_by_edge(order, objective):
    steps, max_gap = 24, 5
    found, growth = walk(steps), [math.exp(2 - 4 * i / steps) for i in range(steps)]
    nodes = states(steps, order, max_gap)
    edges, errors = [], []
    for number, known in enumerate(nodes):
        row = paths.edge_errors(found, growth, [known], max_gap, "channel")[0]
        for gap in np.flatnonzero(np.isfinite(row)).tolist():
            ended = known[0] + gap + 1 == steps
            following = len(nodes) if ended else nodes.index(((known[0] + gap + 1), *known)[:order])
            errors.append(float(row[gap]))
            edges.append((number, following, errors[-1] ** 2 if objective == "squares" else errors[-1]))
    end = [len(nodes)]
    expected = found_by_solve(len(nodes) + 1, edges, end, "sum" if objective == "squares" else objective)
    made = plans(found, growth, order=order, max_gap=max_gap, objective=objective)
    assert sorted(made) == list(expected)
    for count, path in expected.items():
        assert made[count].full_steps == (0, *(nodes[edges[e][1]][0] for e in path[:-1]))
        assert made[count].errors == pytest.approx([errors[e] for e in path], rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_runs_have_a_plan(steps):
    made = plans(walk(steps), [1.0] * steps)
    assert {budget: plan.full_steps for budget, plan in made.items()} == {steps: tuple(range(steps))}


@pytest.mark.parametrize("dead", [(0,), (0, 1)])
def test_a_channel_that_never_moves_is_forecast_by_nothing(dead):
    found = walk(8)
    for channel in dead:
        found.products[:, channel] = 0
    weights = found.weights((3, 2), 5)
    assert np.isfinite(weights).all()
    assert not weights[:, :, list(dead)].any()
    response = np.tril(np.ones((9, 8)), -1)
    made = plans(found, [1.0] * 8)
    assert all(np.isfinite(w).all() for w in gram.solver_weights(found, made[4].full_steps, response).values())


# --- one solve ------------------------------------------------------------------------------------------------------


def forecast_file(path, steps: int):
    found = walk(steps)
    sample = {"levels": list(found.levels), "channels": 2, "elements": 80, "error_growth": {}, "forwards": steps}
    data = {"num_steps": steps, "bands": 1, "samples": {"run-0": sample}, "products": packed(found.products)}
    artifacts.replace(path, {**HEAD, "method": "forecast", **data})
    return path


def lemica_file(path, steps: int):
    errors = {f"{i}-{j}": (j - i) * 0.1 + i * 1e-3 for i in range(steps) for j in range(i + 2, min(steps, i + 6))}
    sample = {"errors": errors, "forwards": 1, "small_forwards": 0, "done": True}
    artifacts.replace(
        path, {**HEAD, "method": "lemica", "num_steps": steps, "reuse": "residual", "samples": {"a": sample}}
    )
    return path


@pytest.mark.parametrize(("make", "module", "kind"), [
    (forecast_file, paths, vaccel.Forecast), (lemica_file, lemica, vaccel.LeMiCa),
])  # fmt: skip
def test_all_candidates_come_from_one_solve(make, module, kind, tmp_path, monkeypatch):
    solves, loads = [], []
    monkeypatch.setattr(module, "solve_units", lambda *a, **k: solves.append(1) or solve_units(*a, **k))
    load = kind.load.__func__
    monkeypatch.setattr(kind, "load", classmethod(lambda cls, *a, **k: loads.append(1) or load(cls, *a, **k)))
    path = make(tmp_path / "made.json", 40)
    auto = vaccel.Auto(speedup=2, artifacts=(str(path),))
    candidates = auto.candidates([str(path)], 40)
    assert len(candidates) > 25
    assert len(solves) == 1
    assert not loads
    chosen = candidates[10].method
    assert len(chosen.full_steps) == candidates[10].budget
    assert chosen == kind.load(path, candidates[10].budget, **({"guard": None} if kind is vaccel.Forecast else {}))
    assert len(solves) == 1
    assert candidates[10].method is chosen


def test_an_artifact_that_was_written_anew_is_solved_anew(tmp_path):
    first = vaccel.LeMiCa.load(lemica_file(tmp_path / "made.json", 12), 12)
    assert len(vaccel.LeMiCa.load(lemica_file(tmp_path / "made.json", 14), 14).full_steps) != len(first.full_steps)


@needs_cpp
def test_memory_of_many_steps(tmp_path):
    """Beside the artifact's own products: a few times the graph, and no object an edge or a plan."""
    steps, channels = 300, 2
    path = forecast_file(tmp_path / "made.json", steps)
    calibration.calibration(path)
    edges = steps * paths.MAX_GAP**2
    tracemalloc.start()
    try:
        vaccel.Forecast.load(path, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * edges + 8 * steps**2 * (channels + 1) + 2**23


def test_python_refuses_what_would_take_it_hours():
    steps, gap = 400, 15
    pairs = np.array([(i, j) for i in range(steps) for j in range(i + 1, min(steps, i + gap))] * 15)
    with pytest.raises(ValueError, match="takes the compiled schedule solver"):
        solve_units(steps, *pairs.T, np.zeros(len(pairs)), np.array([steps - 1]), impl="python")


# --- counts ---------------------------------------------------------------------------------------------------------

HUGE = 10**8
vaccel.Denoiser  # noqa: B018  imported now: what an import allocates is no part of what is bounded below


@pytest.mark.parametrize("make", [
    lambda: vaccel.Schedule([0], num_steps=HUGE), lambda: vaccel.Schedule(range(10**9), num_steps=10),
    lambda: vaccel.Schedule.from_actions(iter(lambda: vaccel.actions.Full(), None)),
    lambda: vaccel.LeMiCa((0, HUGE - 1), HUGE), lambda: vaccel.LeMiCa(range(10**9), 50),
    lambda: vaccel.Forecast((0,), HUGE), lambda: vaccel.Forecast(range(10**9), 50),
    lambda: vaccel.Forecast.shaped(HUGE, 50), lambda: vaccel.DualExpert("folder", HUGE),
    lambda: vaccel.Denoiser(lambda x, t, c: x, method=vaccel.Schedule([0], num_steps=1, reuse="output")).run(HUGE),
    lambda: vaccel.Schedule([0], num_steps=0), lambda: vaccel.Schedule([0], num_steps=2.5),
    lambda: vaccel.Schedule([0], num_steps=None), lambda: vaccel.LeMiCa("0", 3),
    lambda: plans(walk(60), [1.0] * 60, order=5), lambda: plans(walk(10), [1.0] * 10, order=6, max_gap=1),
])  # fmt: skip
def test_counts_out_of_bounds_are_refused_before_anything_is_made(make):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"at most|at least|list of whole numbers"):
            make()
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


# --- a direction of no length ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", [None, "torch", "reference"])
def test_zero_has_no_direction_and_stays_zero(impl):
    x = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    residual = torch.tensor([[0.0, 0.0], [-1.0, -1.0]])
    for magnitude in (2.0, math.nan, math.inf):
        given = torch.tensor([10.0, magnitude])
        out = vaccel.ops.direction_magnitude(x, residual, given, impl=impl)
        assert out.tolist() == [[6.0, 8.0], [0.0, 0.0]]
        guided = vaccel.ops.direction_magnitude_guided(x, residual, residual, given, 5.0, impl=impl)
        assert guided[1].tolist() == [0.0, 0.0]
