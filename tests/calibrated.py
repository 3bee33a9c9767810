"""Forecast's calibrations of the tiny pipelines, each made once for a test session."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from test_oracle import ONE, SEED, pipeline

from vaccel.calibrate import calibrate_forecast
from vaccel.planning.calibration import calibration
from vaccel.planning.prior import shipped

STEPS = 9  # as many as have all their paths tried in a test


def pipe_of(solver: str) -> Any:
    return tiny.qwen_pipeline() if solver == "qwen" else pipeline(solver)[0]


def sampling(solver: str, guidance: float = 5.0, steps: int = STEPS) -> dict[str, Any]:
    """The arguments with which ``tiny.latents`` calls a pipeline."""
    call = tiny.QWEN_CALL if solver == "qwen" else tiny.COG_CALL if solver.startswith("cog") else tiny.WAN_CALL
    call = {k: v for k, v in call.items() if k != "output_type"} | {"num_inference_steps": steps}
    if solver != "qwen":
        return {**call, "guidance_scale": guidance}
    return {**call, "true_cfg_scale": guidance, **({"negative_prompt": ""} if guidance > 1 else {})}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@functools.cache
def artifact(solver: str, guidance: float = 5.0, *, bands: int = 1, tails: int = 0) -> Path:
    """Of one sample, the run that ``forecast_loops.task_of`` makes a loop of."""
    path = Path(_folder().name) / f"{solver}-{guidance}-{bands}-{tails}.json"
    calibrate_forecast(
        pipe_of(solver), [ONE], path, seeds=[SEED], call=sampling(solver, guidance), bands=bands, tails=tails,
        trials=(), first_order=False,
    )  # fmt: skip
    return path


def drawn(own: Sequence[float], samples: int, levels: Sequence[float]) -> list[float]:
    """Error growth [T] of so many samples, drawn towards the prior's at the levels [T], which counts as two."""
    prior = calibration(shipped())
    at, others = prior.gram.levels[:-1], np.log(prior.error_growth)
    wanted = np.array(levels) * min(1.0, at[0] / levels[0])
    others = np.interp(wanted, at[::-1], others[::-1])
    return np.exp((samples * np.log(own) + 2 * others) / (samples + 2)).tolist()
