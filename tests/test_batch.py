"""Many clips: each once, whatever ends a batch, with a manifest of what was made and how."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import vaccel
from vaccel.batch import Job, Making, Manifest, jobs_of, make_all
from vaccel.cli import app
from vaccel.evaluate.contenders import Contender

CALL = {**{k: v for k, v in tiny.WAN_CALL.items() if k != "output_type"}, "num_inference_steps": 6, "output_type": "np"}
METHOD = vaccel.Schedule([0, 2, 4], num_steps=6, reuse="output")
PROMPTS = [
    "a red circle moves left slowly on a gray background",
    "a green cross moves down quickly on a dark background",
]


def making(pipe=None, **options):
    return Making(pipe or tiny.wan_pipeline(), Contender("mine", "vaccel", "Schedule", METHOD), CALL, **options)


def lines(folder: Path):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_jobs():
    assert jobs_of(["a", "b", "a"], 5) == [Job(0, "a", 5), Job(1, "b", 5), Job(2, "a", 6)]


def test_every_clip_once(tmp_path):
    jobs = jobs_of(["a cat", "a dog"])
    with making() as made:
        manifest = Manifest(tmp_path, {"what": 1}, ".png")
        assert [m.error for m in make_all(made, manifest, jobs)] == ["", ""]
        assert make_all(made, Manifest(tmp_path, {"what": 1}, ".png"), jobs) == []
        found = lines(tmp_path)
        assert [(one["prompt"], one["seed"], one["timeline"]) for one in found] == [
            ("a cat", 0, "FoFoFo"), ("a dog", 0, "FoFoFo")]  # fmt: skip
        assert {one["file"] for one in found} == {p.name for p in tmp_path.glob("*.png")}
        (tmp_path / found[0]["file"]).unlink()
        again = make_all(made, Manifest(tmp_path, {"what": 1}, ".png"), jobs)
        assert [m.job.prompt for m in again] == ["a cat"], "a clip that is gone is made again"
        assert len(make_all(made, Manifest(tmp_path, {"what": 2}, ".png"), jobs)) == 2, "made by something else"
    assert len({p.name for p in tmp_path.glob("*.png")}) == 4


def test_a_clip_is_as_if_it_were_made_alone(tmp_path):
    from vaccel.evaluate.clips import as_uint8, enlarged, frames_of

    pipe = tiny.wan_pipeline()
    with making(pipe) as made:
        make_all(made, manifest := Manifest(tmp_path, {}, ".png"), jobs := jobs_of(["a cat", "a dog", "a cat"]))
    import imageio.v3 as iio
    import torch

    other = tiny.wan_pipeline()
    with vaccel.accelerate(other, METHOD):
        for job in jobs:
            alone = frames_of(other(job.prompt, **CALL, generator=torch.Generator().manual_seed(job.seed)))
            kept = iio.imread(tmp_path / manifest.name(job), plugin="pillow", index=None)
            assert np.array_equal(kept[..., :3], enlarged(as_uint8(alone)))


def test_one_that_fails_is_told_of(tmp_path):
    jobs = jobs_of(["a cat", "\N{BELL}", "a dog"])
    with making() as made:
        own = made.make

        def make(job, path):
            if job.number == 1:
                raise RuntimeError("the prompt is too odd")
            return own(job, path)

        made.make = make
        found = make_all(made, Manifest(tmp_path, {}, ".png"), jobs)
        assert [m.error for m in found] == ["", "RuntimeError: the prompt is too odd", ""]
        assert lines(tmp_path)[1]["error"] == "RuntimeError: the prompt is too odd"
        made.make = own
        assert [m.job.number for m in make_all(made, Manifest(tmp_path, {}, ".png"), jobs)] == [1]


def test_fidelity_is_measured_where_it_is_asked_for(tmp_path):
    with making(measure=True) as made:
        (found,) = make_all(made, Manifest(tmp_path, {}, ".png"), jobs_of(["a cat"]))
    assert 5 < found.said["measured"]["psnr"] < 100


def test_a_line_that_was_cut_short(tmp_path):
    with making() as made:
        make_all(made, Manifest(tmp_path, {}, ".png"), jobs_of(["a cat", "a dog"]))
        path = tmp_path / "manifest.jsonl"
        path.write_bytes(path.read_bytes()[:-30])
        manifest = Manifest(tmp_path, {}, ".png")
        assert "1 damaged line(s)" in manifest.notes[0]
        assert [m.job.prompt for m in make_all(made, manifest, jobs_of(["a cat", "a dog"]))] == ["a dog"]
    assert json.loads(path.read_text().splitlines()[-1])["prompt"] == "a dog"


@pytest.mark.parametrize("name", ["../out.png", "/etc/passwd", "a/b.png", "", None, 3, "..", "x\x00y"])
def test_names_that_lead_out_of_the_folder_count_for_nothing(name, tmp_path):
    manifest = Manifest(tmp_path, {}, ".png")
    (tmp_path.parent / "out.png").touch()
    line = {"prompt": "a", "seed": 0, "fingerprint": manifest.fingerprint, "file": name}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    assert not Manifest(tmp_path, {}, ".png").finished(Job(0, "a", 0))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_whatever_a_manifest_holds(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "manifest.jsonl").write_bytes(content)
    manifest = Manifest(folder, {}, ".png")
    assert not manifest.finished(Job(0, "a", 0))
    manifest.add(Job(0, "a", 0), file="x.png")
    (folder / "x.png").touch()
    assert Manifest(folder, {}, ".png").finished(Job(0, "a", 0)), "a line after whatever was there"


def test_the_command(tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "clips"
    prompts.write_text("\n".join([*PROMPTS, ""]))
    words = [
        "generate",
        "--prompts",
        str(prompts),
        "--out",
        str(out),
        "--steps",
        "4",
        "-m",
        "Schedule([0, 2], num_steps=4)",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "2 clips made, 0 were there" in result.output
    assert len(list(out.glob("*.mp4"))) == 2
    assert re.match(r"F.F.", lines(out)[0]["timeline"])
    result = CliRunner().invoke(app, words)
    assert "2 of 2 clips are there already" in result.output
    assert "0 clips made, 2 were there" in result.output


@pytest.mark.parametrize(("words", "says"), [
    (["generate"], "give one prompt, or --prompts"),
    (["generate", "a cat", "--prompts", __file__], "give one prompt, or --prompts"),
    (["generate", "a cat", "--measure"], "is for --prompts"),
    (["generate", "--prompts", __file__, "--trace", "x.json"], "in their manifest"),
    (["generate", "--prompts", __file__, "--out", __file__], "is a file"),
    (["generate", "--prompts", __file__, "--measure", "-m", "steps(4)"], "vaccel compare"),
    (["generate", "--prompts", __file__, "--measure", "-m", "DualExpert(folder='dual_expert')"], "vaccel compare"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "clips"
    prompts.write_text("\n".join(f"{PROMPTS[0]} {n}" for n in range(40)))
    words = [sys.executable, "-m", "vaccel", "generate", "--prompts", str(prompts), "--out", str(out), "--steps", "2",
             "-m", "steps(2)"]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        until = time.monotonic() + 240
        while not (out / "manifest.jsonl").is_file() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "keeps what was made, the same command goes on" in said
    made = lines(out)
    assert 0 < len(made) < 40
    assert {one["file"] for one in made} == {p.name for p in out.glob("*.mp4")}, "nothing half made"
