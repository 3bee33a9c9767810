"""compare and generate as jobs: stopped anywhere they go on, and whatever ends them leaves what was done."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import tiny
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from vaccel.cli import app
from vaccel.cli import console as console_module
from vaccel.cli.generate import write_somewhere
from vaccel.cli.options import assignment, check_call
from vaccel.evaluate import clips, compare, parse_contender, write_report
from vaccel.evaluate import report as report_module

compare_module = sys.modules["vaccel.evaluate.compare"]
CALL = {k: v for k, v in tiny.WAN_CALL.items() if k != "output_type"} | {"num_inference_steps": 4}
OURS, HALF = "Schedule([0,1], num_steps=4)", "steps(2)"
A, B = "a red [/b] cat", "a [bold red]blue $\\bad{$ dog"


def compared(pipe, folder, specs=(OURS, HALF), prompts=(A, B), **options):
    chosen = [parse_contender(s) for s in specs]
    folder.mkdir(exist_ok=True)
    return compare(pipe, chosen, list(prompts), **{"call": CALL, "log": folder / "rows.jsonl", **options})


def measured(result):
    """Rows without what a clock or the memory says."""
    clocks = ("seconds", "full_seconds", "peak_bytes")
    return {(r.contender, r.prompt, r.seed): {k: v for k, v in vars(r).items() if k not in clocks} for r in result.rows}


@pytest.fixture
def runs(monkeypatch):
    """Every run of the pipeline, by what it was called with."""
    made, own = [], compare_module._frames

    def counted(pipe, prompt, seed, call):
        if "callback_on_step_end" not in call:
            made.append(prompt)
        return own(pipe, prompt, seed, call)

    monkeypatch.setattr(compare_module, "_frames", counted)
    return made


# -- going on --------------------------------------------------------------------------------------------------------


def test_the_same_comparison_goes_on(wan, tmp_path, runs, monkeypatch):
    want = measured(compared(tiny.wan_pipeline(), tmp_path / "clean"))
    whole, counted = len(runs), compare_module._frames
    for at in range(1, whole + 1, 4):
        folder = tmp_path / str(at)
        runs.clear()

        def stopped(*args, at=at):
            if len(runs) == at - 1:
                raise KeyboardInterrupt
            return counted(*args)

        monkeypatch.setattr(compare_module, "_frames", stopped)
        result = compared(wan, folder)
        assert not result.complete
        assert isinstance(result.interrupted, KeyboardInterrupt)
        done = len(result.rows)
        monkeypatch.setattr(compare_module, "_frames", counted)
        runs.clear()
        result = compared(wan, folder)
        assert result.complete
        assert measured(result) == want
        # A warm-up; two runs a row that is missing; the full clips that were not made yet, or not kept exactly.
        assert len(runs) <= 1 + 2 * (4 - done) + 2
        assert len((folder / "rows.jsonl").read_text().splitlines()) == 4
        page = write_report(result, folder, title="t", facts={}).read_text()
        assert page.count("data:image/png;base64,") >= 6
        assert not list(folder.rglob("*.partial*"))
        assert not list(folder.rglob("*.exact*"))
    runs.clear()
    assert measured(compared(wan, folder)) == want
    assert not runs, "nothing is left to do"
    assert measured(compared(wan, folder, restart=True)) == want
    assert len(runs) == whole
    assert len((folder / "rows.jsonl").read_text().splitlines()) == 4


def test_rows_of_another_comparison_count_for_nothing(wan, tmp_path, runs):
    compared(wan, tmp_path, prompts=[A])
    whole = len(runs)
    for pipe, call in (
        (wan, {**CALL, "guidance_scale": 7.0}),
        (tiny.wan_pipeline(transformer=tiny.wan_transformer(3)), CALL),
    ):
        runs.clear()
        compared(pipe, tmp_path, prompts=[A], call=call)
        assert len(runs) == whole
    runs.clear()
    compared(wan, tmp_path, prompts=[A])
    assert not runs
    compared(wan, tmp_path, ["Schedule([0,2], num_steps=4)", OURS], prompts=[A, A])
    assert len(runs) == 4, "a warm-up, the full clip, and the new contender beside a full run"


@pytest.mark.parametrize("damage", ["cut", "garbage", "other", "types", "clips"])
def test_damaged_rows_are_measured_again(damage, wan, tmp_path, runs):
    want = measured(compared(wan, tmp_path))
    rows = tmp_path / "rows.jsonl"
    text = rows.read_text()
    lines = text.splitlines()
    if damage == "cut":
        rows.write_text(text[:-30])
    elif damage == "garbage":
        rows.write_bytes(b"\xff\x00\n" + text.encode() + b"[" * 100000)
    elif damage == "other":
        rows.write_text(text + '{"a": 1}\n7\nnull\n[]\n{"key": [], "prompt": {}, "seed": null}\n')
    elif damage == "types":
        rows.write_text("\n".join([lines[0].replace('"seconds": ', '"seconds": -'), *lines[1:]]) + "\n")
    else:
        for clip in (tmp_path / "clips").iterdir():
            clip.write_bytes(clip.read_bytes()[:40])
    result = compared(wan, tmp_path)
    assert measured(result) == want
    assert result.complete
    assert all("damaged" in note for note in result.notes)
    write_report(result, tmp_path, title="t", facts={})


# -- what ends a comparison ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Schedule([0,1], num_steps=5)", "5 steps, the run has 4"),
        ("diffusers.SeaCache(bogus=1)", "bogus"),
        ("diffusers.FirstBlockCache(threshold='x')", "'<' not supported|must be|float|str"),
    ],
)
def test_a_contender_that_cannot_run_is_found_before_the_first_full_run(spec, message, wan, tmp_path, runs):
    result = compared(wan, tmp_path, [OURS, spec])
    assert not runs
    assert not result.complete
    assert [failure.contender for failure in result.failures] == [spec]
    import re

    assert re.search(message, result.failures[0].error)
    page = write_report(result, tmp_path, title="t", facts={}).read_text()
    assert "failed" in page
    assert not json.loads((tmp_path / "report.json").read_text())["complete"]


def test_a_contender_that_fails_later_leaves_the_others(wan, tmp_path, monkeypatch):
    own, count = compare_module._run, []

    def failing(*args):
        count.append(1)
        if len(count) == 2:
            raise RuntimeError("CUDA out of memory")
        return own(*args)

    monkeypatch.setattr(compare_module, "_run", failing)
    result = compared(wan, tmp_path)
    assert len(result.rows) == 3
    assert [(f.contender, f.prompt) for f in result.failures] == [(HALF, A)]
    assert not result.complete
    assert "CUDA out of memory" in write_report(result, tmp_path, title="t", facts={}).read_text()
    monkeypatch.setattr(compare_module, "_run", own)
    result = compared(wan, tmp_path)
    assert result.complete
    assert len(result.rows) == 4


def test_a_full_disk_costs_what_it_holds(wan, tmp_path):
    (tmp_path / "rows.jsonl").symlink_to("/dev/full")
    result = compared(wan, tmp_path)
    assert len(result.rows) == 4
    assert any("No space left" in note for note in result.notes)
    write_report(result, tmp_path, title="t", facts={})


@pytest.mark.parametrize("plot", ["cost_fidelity", "noise_levels"])
def test_a_plot_that_fails_does_not_lose_the_report(plot, wan, tmp_path, monkeypatch):
    result = compared(wan, tmp_path, prompts=[A])

    def fails(*args):
        raise ValueError("no plot")

    monkeypatch.setattr(report_module.plots, plot, fails)
    if plot == "noise_levels":
        curve = {"sigma": [0.1], "loss": [1.0], "gradient": [1.0], "boundary": 0.5}
        monkeypatch.setattr(report_module, "_noise_levels", lambda comparison: [{"teacher": curve}])
    with pytest.warns(UserWarning, match="left out of the report"):
        page = write_report(result, tmp_path, title="t", facts={}).read_text()
    assert "Clips" in page


@pytest.mark.parametrize(
    "curve",
    [
        {"sigma": [0.1, 0.2], "loss": [1.0], "gradient": [1.0, 2.0], "boundary": 0.5},
        {"sigma": [0.1], "loss": ["x"], "gradient": [1.0], "boundary": 0.5},
        {"sigma": [0.1], "loss": [float("nan")], "gradient": [1.0], "boundary": 0.5},
        {"sigma": 3, "loss": [1.0], "gradient": [1.0], "boundary": 0.5},
        [],
        None,
    ],
)
def test_a_ragged_diagnosis_is_left_out(curve, tmp_path):
    from types import SimpleNamespace

    import vaccel

    folder = tmp_path / "experts"
    folder.mkdir()
    (folder / "diagnosis.json").write_text(json.dumps({"curves": {"$\\bad{$": curve}}))
    comparison = SimpleNamespace(contenders=[SimpleNamespace(method=vaccel.DualExpert(str(folder), steps=2))])
    with pytest.warns(UserWarning, match="run `vaccel distill diagnose` again"):
        assert not any(report_module._noise_levels(comparison))


def test_mathematics_is_no_label(tmp_path):
    curve = {"sigma": [0.1, 0.9], "loss": [1.0, 2.0], "gradient": [1.0, 2.0], "boundary": 0.5}
    drawn = report_module.plots.noise_levels({"$\\bad{$": curve})
    assert "<!-- $\\bad{$ -->" in drawn, "as it is written"
    assert "<!-- $\\mathdefault{10^{0}}$ -->" in drawn
    assert matplotlib.rcParams["text.parse_math"], "the axes' own numbers are formulas"


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tinywan"
    tiny.wan_pipeline().save_pretrained(folder)
    return folder


def command(*arguments, monkeypatch=None):
    said = io.StringIO()
    before, console_module.console.file = console_module.console._file, said
    try:
        app([str(a) for a in arguments], standalone_mode=False)
        status = 0
    except SystemExit as error:
        status = error.code
    except typer.BadParameter as error:
        status, _ = 2, said.write(str(error))
    finally:
        console_module.console._file = before
    return status, said.getvalue()


SIZE = [x for a in ("height=32", "width=32", "num_frames=9", "max_sequence_length=8") for x in ("--call", a)]


def test_texts_of_users_are_no_markup(saved, tmp_path):
    out = tmp_path / "c[/b]"
    status, said = command(
        "compare", saved, "-m", f"{OURS}  #[/x]", "-p", A, "-p", B, "--steps", 4, *SIZE, "--out", out
    )
    assert status == 0, said
    assert f"{out}/report.html" in said
    status, said = command("generate", A, "--pipeline", saved, "--steps", 2, *SIZE, "--out", tmp_path / "g[/b].png")
    assert status == 0, said
    status, said = command("compare", saved, "-m", "[/x](1)", "-p", A, "--out", out)
    assert status == 2
    assert "error: '[/x](1)'" in said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("bogus=1", "takes no bogus"),
        ("heigth=32", "did you mean height"),
        ("height=abc", "height must be int.*got 'abc'"),
        ("guidance_scale=[1]", "guidance_scale must be float"),
        ("return_dict=False", "set by the command itself"),
        ("num_inference_steps=3", "use --steps"),
        ("height", "not name=value"),
    ],
)
@pytest.mark.parametrize("name", ["compare", "generate", "calibrate"])
def test_the_calls_arguments_are_looked_at_first(name, call, message, saved, tmp_path):
    import re

    out = ["--out", tmp_path / {"compare": "o", "generate": "o.png", "calibrate": "o.json"}[name]]
    arguments = {
        "compare": ["compare", saved, "-m", OURS, "-p", A],
        "generate": ["generate", A, "--pipeline", saved],
        "calibrate": ["calibrate", "teacache", saved, "-p", A],
    }[name]
    status, said = command(*arguments, *out, "--steps", 4, "--call", call)
    assert status == 2
    assert re.search(message, said)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_the_calls_own_arguments_pass(wan):
    check_call(wan, {"height": 32, "guidance_scale": 5, "negative_prompt": "x", "attention_kwargs": {"scale": 1.0},
                     "guidance_scale_2": None, "max_sequence_length": 8})  # fmt: skip


@pytest.mark.parametrize("place", ["/proc/x/clip.mp4", "dir.mp4", "loop.png", "clip.txt", "file/clip.png"])
def test_a_clips_place_is_looked_at_first(place, tmp_path, monkeypatch):
    (tmp_path / "dir.mp4").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    monkeypatch.setattr("vaccel.cli.generate.Loaded", lambda *args: pytest.fail("the pipeline was loaded"))
    status, said = command("generate", A, "--out", tmp_path / place)
    assert status == 2
    assert said.strip()


@pytest.mark.parametrize("suffix", [".mp4", ".png", ".gif"])
def test_a_clip_whose_place_is_full_is_saved_elsewhere(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    full = tmp_path / f"full{suffix}"
    full.symlink_to("/dev/full")
    clip = np.random.default_rng(0).random((5, 32, 32, 3), dtype=np.float32)
    with pytest.raises(OSError, match="No space left"):
        clips.write_video(full, clip)
    spare = write_somewhere(full, clip, 12)
    assert spare != full
    assert spare.stat().st_size > 500


def test_a_video_that_was_cut_short_is_an_error(tmp_path, monkeypatch):
    own = clips.iio.imwrite

    def short(path, frames, **options):
        own(path, frames[:3] if options.get("codec") else frames, **options)

    monkeypatch.setattr(clips.iio, "imwrite", short)
    clip = np.random.default_rng(0).random((5, 32, 32, 3), dtype=np.float32)
    with pytest.raises(OSError, match="only 3 of 5 frames"):
        clips.write_video(tmp_path / "a.mp4", clip)
    assert not list(tmp_path.iterdir())


def test_a_clip_goes_through_a_link(tmp_path):
    clip = np.random.default_rng(0).random((2, 32, 32, 3), dtype=np.float32)
    (tmp_path / "link.png").symlink_to(tmp_path / "there.png")
    clips.write_video(tmp_path / "link.png", clip)
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "there.png").is_file()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_cleanly(number, status, saved, tmp_path, monkeypatch):
    own = compare_module._run

    def stop(*args):
        os.kill(os.getpid(), number)
        time.sleep(5)
        return own(*args)

    monkeypatch.setattr(compare_module, "_run", stop)
    before = signal.getsignal(signal.SIGTERM)
    found, said = command("compare", saved, "-m", OURS, "-p", A, "--steps", 4, *SIZE, "--out", tmp_path)
    assert (found, signal.getsignal(signal.SIGTERM)) == (status, before)
    assert "the same command goes on" in said
    assert json.loads((tmp_path / "report.json").read_text())["complete"] is False
    monkeypatch.setattr(compare_module, "_run", own)
    found, said = command("compare", saved, "-m", OURS, "-p", A, "--steps", 4, *SIZE, "--out", tmp_path)
    assert found == 0


def test_without_a_terminal_progress_is_plain_lines(saved, tmp_path):
    _, said = command(
        "calibrate", "teacache", saved, "-p", A, "-p", B, "--steps", 4, *SIZE, "--out", tmp_path / "t.json"
    )
    lines = said.splitlines()
    assert f"0/2 {A}" in lines
    assert "\x1b" not in said


def test_a_run_without_a_folder_to_write_is_refused_first(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "vaccel", "compare", "--out", "/proc/x"], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 2
    assert "cannot be written" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


# -- any text --------------------------------------------------------------------------------------------------------

NAMES = "(Schedule|TeaCache|Forecast|LeMiCa|MixCache|Auto|steps|diffusers[.]SeaCache)"
ODD = [
    "(" * 3000, "[" * 3000 + "]" * 3000, "Schedule([0], num_steps=10**9)", "steps(10**400)", "-" * 5000 + "1",
    "Schedule(range(10))", "steps(True)", "TeaCache(artifact='\\0')", "Schedule(*[1])", "Schedule(**{})",
    "TeaCache(0.1, artifact=3)", "LeMiCa(preset=[1])", "Forecast(artifact='.', budget=3)", "DualExpert(folder=3)",
]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=40), st.from_regex(NAMES + r"\([^)]{0,20}\)", fullmatch=True), st.sampled_from(ODD))
CALLS = st.one_of(
    st.text(max_size=60), st.builds("{}={}".format, st.sampled_from(["height", "prompt", "x", ""]), TEXTS)
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(TEXTS)
def test_any_contender_is_parsed_or_refused(text):
    refused = ""
    try:
        made = parse_contender(text, Path("/nonexistent"))
    except (ValueError, OSError) as error:
        refused = str(error)
    assert refused or made.key


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(CALLS)
def test_any_argument_is_read_or_refused(text):
    refused, name = "", None
    try:
        name, value = assignment(text)
        check_call(tiny_pipe(), {name: value})
    except typer.BadParameter as error:
        refused = str(error)
    assert refused or name


_PIPES: list = []


def tiny_pipe():
    if not _PIPES:
        _PIPES.append(tiny.wan_pipeline())
    return _PIPES[0]
