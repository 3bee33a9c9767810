"""What it costs to see a model from outside instead of by its description: ``pytest bench/bench_generic.py -s``.

The same tiny Wan model under the same methods, once described and once as any module; calls of both take turns, so
that whatever disturbs the machine disturbs them alike.  ``VACCEL_BENCH_WRITE=1`` writes
bench/results/<device>/generic.json.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable
from typing import Any

import overhead_contenders as overhead
import pytest
import torch
from results import write

import vaccel

STEPS = overhead.STEPS
METHODS: dict[str, Callable[[], vaccel.Method]] = {
    "Schedule, skipped": lambda: vaccel.Schedule([0], num_steps=STEPS, reuse="residual"),
    "Schedule, computed": lambda: vaccel.Schedule(range(STEPS - 1), num_steps=STEPS, reuse="residual"),
    "Forecast, skipped": lambda: vaccel.Forecast((0, 1), STEPS),
    "EasyCache, skipped": lambda: vaccel.EasyCache(threshold=1e9, warmup=2),
}
ROUNDS = 60


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_call(benchmark: Any, name: str) -> None:
    loop = overhead.vaccel_loop(METHODS[name](), "generic")
    rounds = 10 * len(overhead.TIMED)
    benchmark.pedantic(loop, setup=loop.prepare, rounds=rounds, warmup_rounds=len(overhead.TIMED))


@torch.no_grad()
def test_interleaved(capsys: Any) -> None:
    rows = []
    for name, make in METHODS.items():
        loops = [overhead.vaccel_loop(make(), family) for family in (None, "generic")]
        bare, times = (
            overhead._nothing() if "skipped" in name else overhead.Loop(overhead._wan()),
            [],
        )
        rng = random.Random(0)
        for _ in range(ROUNDS * len(overhead.TIMED)):
            order = [*enumerate(loops), (2, bare)]
            rng.shuffle(order)
            times.append({n: loop.timed() for n, loop in order})
        described, outside = (statistics.median(t[n] - t[2] for t in times[20:]) for n in (0, 1))
        ratio = statistics.median(t[1] for t in times[20:]) / statistics.median(t[0] for t in times[20:])
        rows.append({"method": name, "described_us": described, "outside_us": outside, "ratio_of_calls": ratio})
    with capsys.disabled():
        for row in rows:
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    if os.environ.get("VACCEL_BENCH_WRITE") == "1":
        command = "VACCEL_BENCH_WRITE=1 pytest bench/bench_generic.py -k interleaved"
        write("generic", {"rounds": ROUNDS, "rows": rows}, command=command)
