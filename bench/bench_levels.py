"""How long a calibration takes to be read at a new kind of run: products, path and weights, before its first step.

pytest bench/bench_levels.py --benchmark-columns=median,iqr
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vaccel.demo import family
from vaccel.planning.calibration import Calibration, calibration
from vaccel.planning.prior import shipped


@pytest.mark.parametrize("steps", [20, 50, 100, 200])
@pytest.mark.parametrize("which", ["64 channels", "prior"])
def test_a_new_kind_of_run(benchmark: Any, which: str, steps: int) -> None:
    artifact = family.shipped_folder() / "forecast.json" if which == "64 channels" else shipped()
    known, per = calibration(artifact), "channel" if which == "64 channels" else "tensor"
    levels = (*(5 * s / (1 + 4 * s) for s in np.linspace(1, 1 / steps, steps)), 0.0)
    # Euler's response: what a step's velocity adds, from it on.
    response = np.tril(np.tile(np.diff(levels), (steps + 1, 1)), -1)

    def first(fresh: Calibration) -> None:
        read = fresh.at(levels)
        plan = read.plan(max(2, steps // 3), per=per)
        read.solver_weights(plan.full_steps, tuple(map(tuple, response.tolist())), 2, per)

    benchmark.group = f"{steps} steps"
    benchmark.pedantic(first, setup=lambda: ((Calibration(known.data, known.seal),), {}), rounds=7, warmup_rounds=1)
