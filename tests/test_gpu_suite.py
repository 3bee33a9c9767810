"""The suite for GPU machines, at tiny sizes without one: every line of it but those that reach the device."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vaccel

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture(scope="module")
def suite():
    sys.path.insert(0, str(BENCH))
    spec = importlib.util.spec_from_file_location("gpu_suite", BENCH / "gpu_suite.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCH))


def ran(suite, folder, part, *options):
    result = CliRunner().invoke(suite.app, [part, "--dry", "--out", str(folder), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.filterwarnings("ignore:vaccel")
def test_graphs(suite, tmp_path):
    data = ran(suite, tmp_path, "graphs")
    steps = {"Full", "Rescale", "Small", "Residual blocks", "Residual output", "Forecast"}
    assert steps == set(data["steps_ms"]["eager"])
    assert data["steps_seen"]["eager"]["steps"] == 21
    assert set(data["launches"]) == set(vaccel.ops.__all__) - {"native", "accumulate_and_test"}


def test_actions(suite, tmp_path):
    data = ran(suite, tmp_path, "actions")
    assert set(data["steps_ms"]) == {"eager", "attention _native_math"}
    assert all(step["median"] > 0 for step in data["steps_ms"]["eager"].values())


def test_experts(suite, tmp_path):
    data = ran(suite, tmp_path, "experts")
    assert set(data["modes"]) == {"lora", "merged"}
    for mode in data["modes"].values():
        assert mode["timeline"] == "e" * 8
        assert len(mode["steps_ms"]) == 8
        assert mode["bytes"]["detail"] > 0


def test_runs(suite, tmp_path):
    data = ran(suite, tmp_path, "runs")
    assert data["not_run"] == []
    timelines = {name: run["timeline"] for name, run in data["runs"].items()}
    for name, full in (("0.001", 19), ("0.002", 14), ("0.005", 13), ("0.010", 12)):
        line = timelines[f"DirectionMagnitude tau={name}"]
        assert line.count("F") == full
        assert line[:11] == "F" * 10 + "m"
        assert line[-3:] == "sss"
    assert timelines["SRDiffusion delta=0.01"] == "F" * 10 + "s" * 40
    rendered = timelines["SRDiffusion delta=0.01 + TeaCache"]
    assert (rendered[:11], rendered.count("s"), rendered.count("r")) == ("F" * 10 + "s", 15, 25)
    tea = timelines["TeaCache 0.2"]
    assert (len(tea), tea.count("F"), tea[0], tea[-1]) == (50, 19, "F", "F")


def test_published_lemica_presets(suite):
    import e2e

    for budget in (25, 20, 17, 14):
        actions = e2e.SCHEDULES[f"LeMiCa B={budget}"][0]
        assert sum(type(a).__name__ == "Full" for a in actions) == budget


@pytest.mark.parametrize("part", ["tests", "kernels"])
def test_parts_that_start_others(part, tmp_path):
    command = [sys.executable, str(BENCH / "gpu_suite.py"), part, "--dry", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads((tmp_path / f"{part}.json").read_text())
    if part == "tests":
        assert (data["failed"], data["errors"]) == ([], 0)
        assert data["tests"] > 0 or not vaccel.ops.native()
    else:
        assert {"norm"} == {row["op"] for row in data["rows"]}


def test_without_a_gpu_it_says_so(suite, monkeypatch):
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(suite.app, ["graphs"])
    assert result.exit_code == 2
    assert "no GPU here" in result.output
