"""The suite for GPU machines, at tiny sizes without one: every line of it but those that reach the device."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
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


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every JSON that all parts together write, by its file's name."""
    folder = tmp_path_factory.mktemp("all")
    # The shares are a GPU's: on two busy cores other parts are the long ones, and may take what they take.
    command = [sys.executable, str(BENCH / "gpu_suite.py"), "all", "--dry", "--minutes", "60", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the other tests' worker has the other core
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir()}


def test_all(written, suite):
    summary = written["suite.json"]
    assert list(summary["parts"]) == list(suite.SHARES)
    for part in summary["parts"].values():
        assert (part["status"], part["reason"]) == ("ok", "")
        assert 0 < part["seconds"] < part["limit"] < 60 * summary["minutes"]
    others = {"suite.json", "overhead.json"}  # the second is written by the benchmark itself
    assert {part["json"] for part in summary["parts"].values()} | others == set(written)
    assert all(written[part["json"]]["failed"] == {} for part in summary["parts"].values())


def test_build(written):
    assert written["build.json"]["exit_code"] == 0
    assert "VACCEL_NATIVE=0" in written["build.json"]["said"][0]


def test_tests(written):
    data = written["tests.json"]
    assert data["tests"] == data["passed"] + data["skipped"] > data["skipped"]
    assert (data["not_run"], data["unfinished"], data["exit_code"]) == (0, None, 0)


def test_kernels(written):
    assert {"norm"} == {row["op"] for row in written["kernels.json"]["rows"]}
    assert all(row["eager"]["median"] > 0 for row in written["kernels.json"]["rows"])


def test_families(written):
    data = written["families.json"]
    for name in ("moving shapes, float32", "glyphs, float32"):
        full, *methods = data["families"][name].values()
        assert full["seconds"] > 0
        assert all(method["eager"]["psnr"] > 15 for method in methods if "eager" in method)
        assert len(methods) > 0


@pytest.mark.parametrize(("model", "steps"), [("Wan2.1-14B", 30), ("LTX-2", 30), ("Flux", 28)])
def test_rivals(written, model, steps):
    data = written[f"rivals_{model}_tiny.json"]
    assert data["not_run"] == []
    assert len(data["runs"]["full"]["steps_ms"]) == len(data["runs"]["full, compiled blocks"]["steps_ms"]) == steps
    for name in ("Schedule", "Forecast", "Forecast, compiled blocks"):
        timeline = data["runs"][f"vaccel {name}"]["timeline"]
        assert timeline.count("F") == 10
        assert len(timeline) == steps
    theirs = {name for name in (*data["runs"], *data["refused"]) if name.startswith("diffusers")}
    assert len(theirs) == (3 if model == "Flux" else 4)
    refused = {name: why for name, why in data["refused"].items() if name.startswith("diffusers")}
    assert len([name for name in refused if "TaylorSeer" not in name]) == (3 if model == "LTX-2" else 0)
    assert all("LTX2VideoTransformerBlock" in why for why in refused.values())
    # cache-dit's forward for LTX-2 is of an earlier diffusers, and stays on the model where nobody takes it off.
    assert [*{*data["refused"]} - {*refused}] == (["cache-dit, static mask"] if model == "LTX-2" else [])
    assert data["failed"] == {}


def test_a_cache_that_refuses_leaves_nothing_on_the_model(suite):
    import gpu_models
    import gpu_pipelines

    model = gpu_models.MODELS["LTX-2"]("cpu", True)
    with pytest.raises(ValueError, match="not registered"):  # noqa: SIM117
        with gpu_pipelines._theirs(model, gpu_pipelines._first_block()) as options:
            gpu_pipelines._timed(model, "cpu", True, **options)
    hooked = [m for m in model.pipe.transformer.modules() if getattr(m, "_diffusers_hook", None) is not None]
    assert all(not module._diffusers_hook.hooks for module in hooked)
    assert not model.pipe.transformer.is_cache_enabled


def test_rivals_of_no_known_model(suite):
    result = CliRunner().invoke(suite.app, ["rivals", "--dry", "--model", "Sora"])
    assert result.exit_code == 2
    assert "Wan2.1-14B, LTX-2, Flux" in result.output.replace("\n", " ").replace("│ ", "").replace("  ", " ")


def test_certify(written):
    data = written["certify.json"]
    assert data["wrong"] == []
    assert all(row["passed"] and row["us"] > 0 for row in data["rows"])
    assert data["refused"] == []


def test_certify_says_what_is_refused(suite, tmp_path, monkeypatch):
    import vaccel.certify as proving
    from vaccel.ops.certified import Table

    wrong = {"op": "norm", "impl": "cpp", "dtype": "float32", "passed": False, "why": "off by 3"}
    table = Table([wrong], [{"op": "cosine", "impl": "cpp", "why": "it crashed"}])
    monkeypatch.setattr(proving, "certify", lambda device, **given: given["progress"](1, 1, "norm") or table)
    result = CliRunner().invoke(suite.app, ["certify", "--dry", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "refused: cosine cpp: it crashed" in result.output
    data = json.loads((tmp_path / "certify.json").read_text())
    assert data["wrong"] == ["norm cpp float32: off by 3"]
    assert data["rows"] == [wrong]


def test_overhead(written):
    assert written["overhead_tests.json"]["passed"] == 1
    names = {row["name"] for row in written["overhead.json"]["contenders"]}
    assert {"bare", "vaccel Forecast", "diffusers FirstBlockCache"} <= names


def test_graphs(written):
    data = written["graphs.json"]
    steps = {"Full", "Rescale", "Small", "Residual blocks", "Residual output", "Forecast"}
    assert steps == set(data["steps_ms"]["eager"])
    assert data["steps_seen"]["eager"]["steps"] == 21
    assert set(data["launches"]) == set(vaccel.ops.__all__) - {"native", "accumulate_and_test"}


def test_actions(written):
    data = written["actions_tiny.json"]
    assert set(data["steps_ms"]) == {"eager", "attention _native_math"}
    assert all(step["median"] > 0 for step in data["steps_ms"]["eager"].values())


def test_experts(suite, tmp_path):
    result = CliRunner().invoke(suite.app, ["experts", "--dry", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.iterdir()
    data = json.loads(path.read_text())
    assert set(data["modes"]) == {"lora", "merged"}
    for mode in data["modes"].values():
        assert mode["timeline"] == "e" * 8
        assert len(mode["steps_ms"]) == 8
        assert mode["bytes"]["detail"] > 0


def test_runs(written):
    data = written["runs_tiny.json"]
    assert data["not_run"] == {}
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
    eight = data["runs"]["SRDiffusion delta=0.01 + TeaCache + 8-bit attention"]
    assert (eight["timeline"], eight["published"]) == (rendered, 6.22)
    assert [note.split(":")[1] for note in eight["attention"]] == [
        " sage on the transformer", " sage on the small transformer"
    ]  # fmt: skip


def test_8_bit_attention_that_is_not_there(suite, tmp_path, monkeypatch):
    import contextlib

    import gpu_runs

    monkeypatch.setattr(gpu_runs, "_standing_in", lambda wanted: contextlib.nullcontext())
    command = ["runs", "--dry", "--only", "8-bit", "--attention", "sageattention", "--out", str(tmp_path)]
    result = CliRunner().invoke(suite.app, command)
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "runs_tiny.json").read_text())
    assert data["runs"] == {}
    assert "install `sageattention" in data["not_run"]["SRDiffusion delta=0.01 + TeaCache + 8-bit attention"]


def test_published_lemica_presets(suite):
    import e2e

    for budget in (25, 20, 17, 14):
        actions = e2e.SCHEDULES[f"LeMiCa B={budget}"][0]
        assert sum(type(a).__name__ == "Full" for a in actions) == budget


def test_without_a_gpu_it_says_so(suite, monkeypatch):
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(suite.app, ["graphs"])
    assert result.exit_code == 2
    assert "no GPU here" in result.output


# -- a part that goes wrong --------------------------------------------------------------------------------------------

HANG = "import subprocess as s, sys; print('here', s.Popen(['sleep', '60']).pid); import time; time.sleep(60)"
CRASH = "import os, signal; print('then'); os.kill(os.getpid(), signal.SIGSEGV)"
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{}')"


def running(pid):
    """Whether there is such a process; one that is dead may still have its number."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def parts_of(suite, folder, **scripts):
    """Parts that run Python, each given the file that it may write."""
    return [
        suite.Part(name, 1.0, [sys.executable, "-c", script, str(folder / f"{name}.json")], name, timed=False)
        for name, script in scripts.items()
    ]


def run_all(suite, folder, parts, seconds):
    """The exit status and the summaries as they were written."""
    summaries = []
    keep = lambda summary: summaries.append(json.loads(json.dumps(summary)))  # noqa: E731
    return suite.run_all(parts, seconds, folder, dict(os.environ), keep), summaries


def test_parts_after_one_that_hangs_or_crashes(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gpu_parts.LEAST", 0.1)
    parts = parts_of(suite, tmp_path, hangs=HANG, crashes=CRASH, fails="raise SystemExit(3)", works=WRITE)
    (tmp_path / "fails.json").write_text("{}")
    os.utime(tmp_path / "fails.json", (0, 0))  # of an earlier run
    code, summaries = run_all(suite, tmp_path, parts, 6.0)
    assert code == 1
    assert [s["status"] for s in summaries[0].values()] == ["skipped"] * 4
    assert [s["works"]["reason"] for s in summaries[:-1]] == ["not reached"] * 4
    last = summaries[-1]
    assert {n: s["status"] for n, s in last.items()} == {
        "hangs": "timed out", "crashes": "failed", "fails": "failed", "works": "ok"
    }  # fmt: skip
    assert last["hangs"]["seconds"] == pytest.approx(1.5, abs=0.5)
    assert (last["crashes"]["reason"], last["crashes"]["last_lines"]) == ("Segmentation fault", ["then"])
    assert (last["fails"]["reason"], last["fails"]["json"]) == ("exit status 3", None)
    assert last["works"]["json"] == "works.json"
    assert last["works"]["limit"] > 3  # what the others left
    started = int(last["hangs"]["last_lines"][0].removeprefix("here "))
    assert not running(started)
    assert "1/4 hangs: timed out" in capsys.readouterr().out


def test_no_time_is_left(suite, tmp_path):
    code, summaries = run_all(suite, tmp_path, parts_of(suite, tmp_path, one=WRITE, two=WRITE), 6.0)
    assert code == 0
    assert summaries[-1]["one"] == {"status": "skipped", "reason": "out of time"}
    assert summaries[-1]["two"]["status"] == "ok"


def test_ctrl_c_keeps_what_there_is(suite, tmp_path):
    parts = parts_of(suite, tmp_path, works=WRITE, hangs=HANG, never=WRITE)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    code, summaries = run_all(suite, tmp_path, parts, 60.0)
    assert code == 130
    assert [s["status"] for s in summaries[-1].values()] == ["ok", "interrupted", "skipped"]
    assert (tmp_path / "works.json").exists()


def test_a_measurement_that_fails_is_written_down(suite, tmp_path, monkeypatch):
    import e2e

    def run(pipe, clip, steps):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(e2e, "run", run)
    result = CliRunner().invoke(suite.app, ["actions", "--dry", "--out", str(tmp_path)])
    data = json.loads((tmp_path / "actions_tiny.json").read_text())
    assert result.exit_code == 1
    assert data["failed"] == dict.fromkeys(("eager", "attention _native_math"), "RuntimeError: out of memory")


@pytest.mark.parametrize("part", ["actions", "runs"])
def test_a_part_that_is_killed_leaves_what_it_measured(suite, tmp_path, monkeypatch, part):
    import e2e

    real, calls = e2e.run, []

    def run(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt  # as good as killed: nothing of the suite's catches it
        return real(*arguments)

    (tmp_path / f"{part}_tiny.json").write_text("of an earlier run")
    monkeypatch.setattr(e2e, "run", run)
    result = CliRunner().invoke(suite.app, [part, "--dry", "--out", str(tmp_path)])
    assert result.exit_code != 0
    data = json.loads((tmp_path / f"{part}_tiny.partial.json").read_text())
    assert len(data["steps_ms" if part == "actions" else "runs"]) == 1
    assert (tmp_path / f"{part}_tiny.json").read_text() == "of an earlier run"


@pytest.mark.parametrize("part", ["actions", "runs"])
def test_out_of_time_nothing_is_begun(suite, tmp_path, part):
    result = CliRunner().invoke(suite.app, [part, "--dry", "--out", str(tmp_path), "--seconds", "-1"])
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / f"{part}_tiny.json").read_text())
    assert data["steps_ms" if part == "actions" else "runs"] == {}
    assert data["not_run"]


TESTS = """
import os, signal, time
def test_good(): pass
def test_bad(): assert 1 == 2
def test_poison(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_after(): pass
def test_crash(): os.kill(os.getpid(), signal.SIGKILL)
def test_slow():
    time.sleep(1)
    time.monotonic = lambda: float("inf")
def test_late(): pass
"""


def test_pytest_is_read_along(suite, tmp_path, monkeypatch):
    import pytest_lines

    monkeypatch.setattr(pytest_lines, "NEWS", 0.1)
    (tmp_path / "test_some.py").write_text(TESTS)
    kept = []
    env = {**suite.environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    arguments = ["test_some.py", "-o", "addopts="]
    keep = lambda said, code: kept.append((code, pytest_lines.counted(said)))  # noqa: E731
    assert pytest_lines.run(arguments, tmp_path, env, 600.0, keep) == 1
    code, last = kept[-1]
    assert code == 1
    assert [last[n] for n in ("tests", "passed", "failures", "not_run", "unfinished")] == [7, 3, 3, 1, None]
    names = [test.rpartition("::")[2] for test in last["failed"]]
    assert names == ["test_bad", "test_poison", "test_crash"]
    assert "Killed" in last["failed"]["test_some.py::test_crash"]
    assert (None, "test_some.py::test_slow") in [(code, counted["unfinished"]) for code, counted in kept]
