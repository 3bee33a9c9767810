"""Forecast against plain loops, what it refuses, and the other ways to ask for forecasts."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import oracle_caching
import pytest
import tiny
import torch
from calibrated import STEPS, artifact, pipe_of
from forecast_loops import Coordinates, distance, fitted, forecast, last_output, line, task_of
from oracle import Solver
from test_oracle import ONE, SEED, TOLERANCE

import vaccel
from vaccel import actions, artifacts
from vaccel.actions import Weights
from vaccel.calibrate.forecast import calibrate_forecast
from vaccel.gram import RIDGE

TWO = ["a red cat runs", "a blue dog sleeps"]
PATH = (0, 3, 5, 6, 9)  # forecasts from one velocity, and from two at various distances
LETTERS = "FppFpFFppF"

guidances = pytest.mark.parametrize("guidance", [5.0, 1.0], ids=["cfg", "no-cfg"])
solvers = pytest.mark.parametrize("solver", ["unipc", "euler", "dpm", "wan-epsilon", "cog-ddim", "cog-dpm", "qwen"])


def accelerated(solver, method, *, prompt=ONE, guidance=5.0, steps=STEPS, pipe=None):
    """(latents, trace) of a run on a new pipeline."""
    pipe = pipe or pipe_of(solver)
    with vaccel.accelerate(pipe, method) as handle:
        return tiny.latents(pipe, prompt, steps=steps, seed=SEED, guidance=guidance), handle.trace


def loaded(solver, guidance=5.0, bands=1, path=PATH, **fields):
    """A calibration's weights, on a path of our own."""
    method = vaccel.Forecast.load(artifact(solver, guidance, bands=bands), budget=5, **fields)
    return dataclasses.replace(method, full_steps=path)


# --- runs -----------------------------------------------------------------------------------------------------------


@solvers
@guidances
def test_without_calibration(solver, guidance):
    task = task_of(solver, guidance=guidance)
    expected = forecast(task, PATH, line(task))
    actual, trace = accelerated(solver, vaccel.Forecast(PATH, STEPS), guidance=guidance)
    assert distance(actual, expected.latents) < TOLERANCE
    assert trace.timeline() == expected.letters == LETTERS
    assert trace.calls == {"large": len(PATH) * (2 if guidance > 1 else 1), "small": 0}
    assert [s.large for s in trace.steps if s.action.letter == "p"] == [0] * 5
    assert distance(actual, forecast(task, range(STEPS), None).latents) > 100 * TOLERANCE, "something was skipped"


@pytest.mark.parametrize("solver", ["unipc", "cog-ddim", "qwen"])
@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_damping_and_a_batch(solver, damping):
    prompt = ["a red cat runs", "blue dog"] if solver == "qwen" else TWO
    task = task_of(solver, prompt)
    expected = forecast(task, PATH, line(task, damping))
    actual, trace = accelerated(solver, vaccel.Forecast(PATH, STEPS, damping=damping), prompt=prompt)
    assert distance(actual, expected.latents) < TOLERANCE
    assert trace.timeline() == LETTERS


def ridge_allows(trajectories):
    """By how much the ridge may move a forecast, relatively: sqrt(RIDGE) / 2 of its weights' length, about one here."""
    assert np.isfinite(trajectories).all()
    return RIDGE**0.5 / 2


@solvers
@guidances
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_calibrated(solver, guidance, per):
    task = task_of(solver, guidance=guidance)
    full = forecast(task, range(STEPS), None)
    expected = forecast(task, PATH, fitted(full.trajectory, per))
    actual, trace = accelerated(solver, loaded(solver, guidance, per=per), guidance=guidance)
    assert distance(actual, expected.latents) < TOLERANCE
    assert trace.timeline() == LETTERS
    other = forecast(task, PATH, fitted(full.trajectory, "tensor" if per == "channel" else "channel"))
    assert distance(other.latents, expected.latents) > 10 * TOLERANCE, "the cases differ"


@pytest.mark.parametrize("solver", ["unipc", "cog-ddim"])
@pytest.mark.parametrize("per", ["channel, band", "band"])
def test_calibrated_by_bands(solver, per):
    if solver == "cog-ddim":
        pytest.skip("oracle's bands are along the last two axes in both")
    task = task_of(solver)
    trajectories = forecast(task, range(STEPS), None).trajectory
    expected = forecast(task, PATH, fitted(trajectories, per))
    actual, trace = accelerated(solver, loaded(solver, bands=2, per=per))
    assert distance(actual, expected.latents) < TOLERANCE
    assert trace.timeline() == LETTERS
    other = forecast(task, PATH, fitted(trajectories, per.split(",")[0].replace("band", "tensor")))
    assert distance(other.latents, expected.latents) > 10 * TOLERANCE
