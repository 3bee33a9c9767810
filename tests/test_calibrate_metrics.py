"""Further metrics in a Forecast calibration: measured by the trial runs, kept, merged, and said by Auto."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from calibrated import STEPS, pipe_of, sampling
from test_oracle import ONE, SEED
from typer.testing import CliRunner

import vaccel
from vaccel.calibrate import calibrate_forecast
from vaccel.cli import app
from vaccel.evaluate import metrics
from vaccel.planning import artifacts
from vaccel.planning.calibration import calibration
from vaccel.planning.fidelity import at
from vaccel.planning.merging import merged

SHARES = (0.5, 0.75)


def worst(a, b):
    """The largest difference of any pixel."""
    assert a.shape == b.shape
    assert a.ndim == 4
    assert a.shape[-1] == 3
    assert a.min() >= 0
    assert a.max() <= 1
    return float(np.abs(a - b).max())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("metrics") / "forecast.json"
    calibrate_forecast(
        pipe_of("unipc"), [ONE, "a blue dog"], path, call=sampling("unipc", 5.0), seeds=[SEED], tails=1, trials=SHARES,
        metrics={"psnr again": metrics.psnr, "worst": worst, "none of these": lambda a, b: None},
    )  # fmt: skip
    return path


def test_trial_runs_are_measured(made):
    for sample in artifacts.read(made, "forecast")["samples"].values():
        (curve,), (again,), (far,) = sample["curves"], sample["metrics"]["psnr again"], sample["metrics"]["worst"]
        assert [e for e, _ in again] == [e for e, _ in curve] == [e for e, _ in far]
        assert [v for _, v in again] == pytest.approx([v for _, v in curve], abs=0.1)
        assert all(0 < v < 1 for _, v in far)
        assert sample["metrics"]["none of these"] == [[]]
    known = calibration(made)
    assert sorted(known.metrics) == ["psnr again", "worst"]
    error = known.plan(STEPS // 2).predicted
    expected = np.mean([at(curve, error) for curve in known.metrics["worst"]])
    assert known.expected(error)["worst"] == pytest.approx(expected)


def test_a_curve_is_read_between_its_runs_and_held_beyond_them():
    curve = [(1e-2, 50.0), (1e-4, 90.0)]
    assert [at(curve, e) for e in (1.0, 1e-2, 1e-3, 1e-4, 1e-9)] == pytest.approx([50, 50, 70, 90, 90])


def test_merged_calibrations_have_all(made, tmp_path):
    both = merged([calibration(made), calibration(made)])
    artifacts.replace(tmp_path / "both.json", both)
    known = calibration(tmp_path / "both.json")
    assert len(known.metrics["worst"]) == 4
    assert sorted(known.metrics["worst"][:2]) == sorted(calibration(made).metrics["worst"])


def test_auto_says_what_is_expected(made):
    pipe = pipe_of("unipc")
    with vaccel.accelerate(pipe, vaccel.Auto(speedup=1.5, artifacts=(str(made),))) as handle:
        tiny.latents(pipe, steps=STEPS, seed=SEED)
        (note,) = [n for n in handle.trace.notes if n.startswith("Auto")]
    assert "PSNR" in note
    assert ", worst 0." in note
    assert ", psnr again " in note


def test_the_command_line_refuses_what_it_cannot_measure(tmp_path):
    out = tmp_path / "forecast.json"
    answer = CliRunner().invoke(app, ["calibrate", "forecast", "--out", str(out), "--metrics", "beauty"])
    assert answer.exit_code != 0
    assert "unknown metric 'beauty'" in answer.output
    assert "Traceback" not in answer.output
    assert not out.exists()
