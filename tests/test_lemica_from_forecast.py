"""LeMiCa's edges from a Forecast calibration: against plain loops, and the artifact through API and command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
from beyond import record
from diffusers import FlowMatchEulerDiscreteScheduler
from typer.testing import CliRunner

import vaccel
from vaccel.calibrate import lemica_from_forecast
from vaccel.cli import app
from vaccel.methods.lemica import edges
from vaccel.planning import artifacts
from vaccel.planning.gram import Gram
from vaccel.planning.reuse import reuse_errors

pytestmark = pytest.mark.fast
STEPS, SIZE = 9, 40


def looped(velocities, levels, start, end, reuse):
    """By how much the latents that enter ``end`` are off where the steps after ``start`` reuse what it has left.

    Straight from the definition: x + (v_f - x_f), or v_f, at every skipped step of a loop by Euler's rule.
    """
    x = [np.linspace(-1, 1, velocities.shape[1])]
    for i, v in enumerate(velocities):
        x.append(x[-1] + (levels[i + 1] - levels[i]) * v)
    own = x[start + 1]
    for i in range(start + 1, end):
        v = velocities[start] + (own - x[start] if reuse == "residual" else 0)
        own = own + (levels[i + 1] - levels[i]) * v
    return float(np.sqrt(np.mean((own - x[end]) ** 2)))


@pytest.mark.parametrize("reuse", ["residual", "output"])
def test_edges_are_those_of_a_plain_loop(reuse):
    draw = np.random.default_rng(4)
    levels = np.r_[np.sort(draw.uniform(0, 1, STEPS))[::-1], 0]
    velocities, growth = draw.normal(size=(STEPS, SIZE)), draw.uniform(0.2, 4, STEPS)
    gram = Gram(tuple(levels), (velocities @ velocities.T)[None, None], SIZE)
    found = reuse_errors(gram, growth, reuse, max_gap=5)
    assert set(found) == {(f, j) for f in range(STEPS) for j in range(f + 2, min(f + 5, STEPS - 1) + 1)}
    for (start, end), error in found.items():
        assert error == pytest.approx(growth[end] * looped(velocities, levels, start, end, reuse), rel=1e-9)


def recorded(tmp_path, scheduler=None):
    pipe, path = tiny.wan_pipeline(scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0)), tmp_path / "forecast.json"
    record(pipe, lambda: tiny.latents(pipe, steps=STEPS), path)
    return pipe, path


def entering(pipe, step):
    """The latents that enter a step of the pipeline's run."""
    found = {}

    def keep(pipe, index, t, given):
        found[index + 1] = given["latents"].double().clone()
        return {}

    tiny.latents(pipe, steps=STEPS, callback_on_step_end=keep)
    return found[step]


@pytest.mark.parametrize("reuse", ["residual", "output"])
def test_edges_are_those_of_the_pipeline(tmp_path, reuse):
    """With Euler's rule: what a schedule that reuses the output has left in the latents by the end of the stretch."""
    pipe, path = recorded(tmp_path)
    known = vaccel.planning.calibration.calibration(path)
    found = reuse_errors(known.gram, [1.0] * STEPS, reuse)
    for start, end in ((0, 3), (2, 5), (4, 8)):
        full = [i for i in range(STEPS) if not start < i < end]
        plain = entering(pipe, end)
        with vaccel.accelerate(pipe, vaccel.Schedule(full, num_steps=STEPS, reuse=reuse)):
            error = (entering(pipe, end) - plain).square().mean().sqrt().item()
        assert found[start, end] == pytest.approx(error, rel=1e-3)


def test_the_artifact_serves_as_a_measured_one(tmp_path):
    pipe, path = recorded(tmp_path)
    out = tmp_path / "lemica.json"
    answer = CliRunner().invoke(app, ["calibrate", "lemica", "--from", str(path), "--out", str(out), "--max-gap", "4"])
    assert answer.exit_code == 0, answer.output
    assert "no forwards" in answer.output
    data = artifacts.read(out, "lemica")
    assert data == lemica_from_forecast(path, tmp_path / "again.json", max_gap=4)
    assert len(edges(data)) == STEPS - 1 + len(data["samples"]["closed form"]["errors"])
    method = vaccel.LeMiCa.load(out, 4)
    with vaccel.accelerate(pipe, method) as handle:
        tiny.latents(pipe, steps=STEPS)
        assert handle.trace.calls["large"] == 2 * 4
    with pytest.raises(ValueError, match="calibrated with another pipeline"):
        vaccel.accelerate(tiny.wan_pipeline(transformer=tiny.wan_transformer(5)), method)


def test_what_does_not_follow_is_refused(tmp_path):
    _, path = recorded(tmp_path)
    data = json.loads(path.read_text())
    data["scheduler"] = {"class": "DDIMScheduler", "config": {"prediction_type": "epsilon"}}
    artifacts.replace(path, data)
    out = tmp_path / "lemica.json"
    with pytest.raises(ValueError, match="predicts the velocity"):
        lemica_from_forecast(path, out)
    for wrong in ({"reuse": "guidance"}, {"max_gap": 1}):
        with pytest.raises(ValueError, match="must be"):
            lemica_from_forecast(path, out, **wrong)
    for more in (["--reuse", "guidance"], []):
        answer = CliRunner().invoke(app, ["calibrate", "lemica", "--from", str(path), "--out", str(out), *more])
        assert answer.exit_code != 0
        assert "Traceback" not in answer.output
    assert not out.exists()
