"""The schedule solver: every budget of a run at once, by the compiled core and by the Python it is checked against.

    pytest bench/bench_schedules.py                              # pytest-benchmark's table
    VACCEL_BENCH_WRITE=1 pytest bench/bench_schedules.py         # and the JSON

The graph is a LeMiCa calibration's: from each step an edge to each of the next ``gap``, every edge one computed step,
all errors different, larger over longer edges and early in the run.  Timed is the public function, its checks included.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from results import write

from vaccel.planning import schedules
from vaccel.planning.schedules import Edge, solve

COMMAND = "VACCEL_BENCH_WRITE=1 pytest bench/bench_schedules.py"
CASES = [(50, 7, "cpp"), (50, 7, "python"), (200, 16, "cpp"), (200, 16, "python"), (1000, 16, "cpp")]


@functools.cache
def graph(steps: int, gap: int) -> list[Edge]:
    rng = random.Random(0)

    def error(start: int, end: int) -> float:
        return (end - start - 1) ** 1.5 * (1.2 - start / steps) * (1 + rng.random()) + 1e-9 * rng.random()

    pairs = [(i, j) for i in range(steps) for j in range(i + 1, min(steps, i + gap + 1))]
    return [Edge(i, j, 1, error(i, j)) for i, j in pairs]


@pytest.fixture(scope="module")
def rows() -> Iterator[list[dict[str, Any]]]:
    """What was measured; written when the last is."""
    found: list[dict[str, Any]] = []
    yield found
    if os.environ.get("VACCEL_BENCH_WRITE") == "1":
        medians = {(row["steps"], row["impl"]): row["median_s"] for row in found}
        for row in found:
            if row["impl"] == "python" and (row["steps"], "cpp") in medians:
                row["over_cpp"] = round(row["median_s"] / medians[row["steps"], "cpp"], 1)
        write("schedules", {"objective": "leximax", "rows": found}, command=COMMAND)


@pytest.mark.parametrize(("steps", "gap", "impl"), CASES)
def test_every_budget(benchmark: Any, rows: list[dict[str, Any]], steps: int, gap: int, impl: str) -> None:
    if impl == "cpp" and not schedules.LOADED:
        pytest.skip(schedules.DETAIL)
    edges = graph(steps, gap)
    benchmark.group = f"T={steps}, gap {gap}"
    found = benchmark.pedantic(solve, (steps, edges), {"impl": impl}, rounds=5, warmup_rounds=1)
    assert found == solve(steps, edges), "the implementations chose different paths"
    if benchmark.stats is not None:  # None where benchmarks are disabled
        stats = {f"{name}_s": round(getattr(benchmark.stats.stats, name), 6) for name in ("median", "q1", "q3")}
        size = {"steps": steps, "gap": gap, "edges": len(edges), "budgets": len(found)}
        rows.append({**size, "impl": impl, "rounds": 5, **stats})
