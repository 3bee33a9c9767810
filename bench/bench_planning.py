"""All budgets of a long run from its calibration: what it takes until the first run can start.

    pytest bench/bench_planning.py                               # pytest-benchmark's table
    VACCEL_BENCH_WRITE=1 pytest bench/bench_planning.py          # and the JSON

Timed are ``Forecast.load``, ``LeMiCa.load`` and ``Auto``'s candidates of a fresh artifact, its reading included.
Beside them stands how far the process's resident memory rose at most (``VmHWM``, Linux), each case in a process of its
own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import write

from vaccel.planning import artifacts
from vaccel.planning.calibration import packed

COMMAND = "VACCEL_BENCH_WRITE=1 pytest bench/bench_planning.py"
CHANNELS = 2
CASES = [(steps, how) for steps in (50, 200, 1000) for how in ("forecast", "lemica", "auto forecast", "auto lemica")]
ASK = """
import json, re, sys, time, vaccel
path, steps, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
vaccel.Forecast, vaccel.LeMiCa, vaccel.Auto
highest = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, began = highest(), time.perf_counter()
if how == "forecast":
    vaccel.Forecast.load(path, steps // 3)
elif how == "lemica":
    vaccel.LeMiCa.load(path, steps // 3)
else:
    candidates = vaccel.Auto(speedup=2, artifacts=(path,)).candidates([path], steps)
    candidates[len(candidates) // 3].method
print(json.dumps({"seconds": time.perf_counter() - began, "mib": highest() - before}))
"""


def made(folder: Path, kind: str, steps: int) -> Path:
    """A calibration of so many steps: a random walk's inner products, or errors that grow with the gap."""
    path, rng = folder / f"{kind}-{steps}.json", np.random.default_rng(0)
    head = {
        "schema": artifacts.SCHEMA, "method": kind, "model": {"class": "M", "config": "c"},
        "scheduler": {"class": "S", "config": {}}, "call": {}, "num_steps": steps,
    }  # fmt: skip
    if kind == "forecast":
        v = np.cumsum(rng.standard_normal((steps, CHANNELS, 300)), axis=0)
        levels = np.linspace(1, 0, steps + 1).tolist()
        sample = {"levels": levels, "channels": CHANNELS, "elements": 600, "error_growth": {}, "forwards": steps}
        data = {"bands": 1, "samples": {"0": sample}, "products": packed(np.einsum("tcd,ucd->ctu", v, v)[None])}
    else:
        pairs = [(i, j) for i in range(steps) for j in range(i + 2, min(steps, i + 17))]
        errors = {f"{i}-{j}": (j - i - 1) ** 1.5 * (1.2 - i / steps) * (1 + rng.random()) for i, j in pairs}
        sample = {"errors": errors, "forwards": 1, "small_forwards": 0, "done": True}
        data = {"reuse": "residual", "samples": {"0": sample}}
    artifacts.write(path, {**head, **data})
    return path


@pytest.fixture(scope="module")
def rows() -> Iterator[list[dict[str, Any]]]:
    """What was measured; written when the last is."""
    found: list[dict[str, Any]] = []
    yield found
    if os.environ.get("VACCEL_BENCH_WRITE") == "1":
        write("planning", {"channels": CHANNELS, "rows": found}, command=COMMAND)


@pytest.mark.parametrize(("steps", "how"), CASES)
def test_until_a_run_can_start(
    benchmark: Any, rows: list[dict[str, Any]], tmp_path: Path, steps: int, how: str
) -> None:
    path, seen = made(tmp_path, how.split()[-1], steps), []

    def ask() -> None:
        command = [sys.executable, "-c", ASK, str(path), str(steps), how]
        seen.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    benchmark.group = f"T={steps}"
    benchmark.pedantic(ask, rounds=3)  # the process's start included, in this table alone
    median = {name: round(float(np.median([one[name] for one in seen])), 4) for name in ("seconds", "mib")}
    rows.append({"steps": steps, "how": how, **median})
    benchmark.extra_info.update(median)
    print(f"\nT={steps} {how}: {median['seconds']:.3f} s, {median['mib']:.0f} MiB")
