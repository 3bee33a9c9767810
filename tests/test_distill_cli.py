"""``vaccel distill`` from clips to a sampled clip, on a tiny pipeline saved to a folder, and everything it refuses."""

from __future__ import annotations

import functools
import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_distill_sharded import ROUNDING
from typer.testing import CliRunner

from vaccel.cli import app
from vaccel.distill import diagnosis
from vaccel.distill.trainer import Trainer
from vaccel.evaluate.clips import write_video

SIZE = ["--frames", "9", "--height", "32", "--width", "32"]
CALL = [
    part for text in ("height=32", "width=32", "num_frames=9", "max_sequence_length=8") for part in ("--call", text)
]
PATH = ["--split", "6", "--shift", "5", "--guidance", "3"]
TRAIN = [*PATH, "--points", "10", "--lag", "1", "--rank", "2", "--alpha", "4", "--head-width", "32", "--batch", "2"]


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def said(result) -> str:
    """What was printed, without line breaks and frames."""
    return " ".join(result.output.replace("│", " ").split())


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipe")
    tiny.wan_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    lines = []
    for i in range(3):
        write_video(folder / f"{i}.mp4", np.random.default_rng(i).random((9, 32, 32, 3), dtype=np.float32))
        lines.append(json.dumps({"file_name": f"{i}.mp4", "text": f"a red cat {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    out = tmp_path_factory.mktemp("data")
    made = run("distill", "prepare", pipe, "--data", folder, "--out", out, *SIZE, "--call", "max_sequence_length=8")
    assert made.exit_code == 0, made.output
    assert "3 samples in 1 shards" in said(made)
    return out


def distill(pipe, data, out, stage, *more, iterations=2):
    return run(
        "distill", pipe, "--data", data, "--out", out, "--stage", stage, "--iterations", iterations, *TRAIN, *more
    )  # fmt: skip


@pytest.fixture(scope="module")
def experts(pipe, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("experts")
    for stage in ("semantic", "detail"):
        made = distill(pipe, data, out, stage)
        assert made.exit_code == 0, made.output
        assert f"{stage} expert; loss curves and samples in" in said(made)
    return out


def test_help_helps():
    listed = run("distill", "--help")
    assert listed.exit_code == 0
    assert all(name in listed.output for name in ("prepare", "train", "diagnose"))
    shown = said(run("distill", "train", "--help"))
    assert "(38, wan 35)" in shown
    assert "detail stage:" in shown
    assert "[required]" in shown
    assert run("distill", "diagnose", "--help").exit_code == 0


def test_the_module_runs_too(monkeypatch, capsys):
    """``python -m vaccel --help``, as Python itself does it."""
    monkeypatch.setattr(sys, "argv", ["vaccel", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("vaccel", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert "distill" in capsys.readouterr().out


def test_from_clips_to_a_clip(pipe, experts, tmp_path, monkeypatch):
    monkeypatch.chdir(experts.parent)
    method = f"DualExpert(folder='{experts.name}', steps=4)"
    made = run("generate", "a red cat", "--pipeline", pipe, "-m", method, *CALL, "--out", tmp_path / "clip.gif")
    assert made.exit_code == 0, made.output
    assert "eeee large 4, small 0" in said(made)
    assert (tmp_path / "clip.gif").stat().st_size > 500


def test_accelerate_launches_it_sharded(pipe, data, tmp_path):
    """The command of the docs, with two processes; ``test_distill_sharded.py`` has the rest."""
    pair = ["--batch", "2", "--save-every", "1"]
    made = distill(pipe, data, tmp_path / "one", "semantic", *pair, "--parts", "2")
    assert made.exit_code == 0, made.output
    launcher = "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher.split()]
    command += ["--use_fsdp", "--fsdp_version", "2"]
    command += ["-m", "vaccel", "distill", pipe, "--data", data, "--out", tmp_path / "two", "--stage", "semantic"]
    command += ["--iterations", "2", *TRAIN, *pair]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}  # the launcher itself takes --cpu or --use_fsdp
    ran = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300,
                         check=False)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    one, two = (load_file(tmp_path / name / "semantic.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=ROUNDING, atol=ROUNDING)


def test_saved_in_another_dtype(pipe, data, tmp_path):
    made = distill(pipe, data, tmp_path, "semantic", "--save-dtype", "bfloat16", iterations=1)
    assert made.exit_code == 0, made.output
    assert {str(t.dtype) for t in load_file(tmp_path / "semantic.safetensors").values()} == {"torch.bfloat16"}


def test_interrupted_and_run_again(pipe, data, tmp_path, monkeypatch):
    iterate = Trainer.iterate

    def stopped(self, batches):
        if self.iteration == 1:
            raise KeyboardInterrupt
        return iterate(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", stopped)
        result = distill(pipe, data, tmp_path, "semantic")
    assert result.exit_code == 130
    assert "the same command resumes it" in said(result)
    assert not (tmp_path / "dual_expert.json").exists()
    assert distill(pipe, data, tmp_path, "semantic").exit_code == 0
    lines = (tmp_path / "training" / "semantic" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--stage'"),
        (["--stage", "third"], "'third' is not one of semantic, detail, single"),
        (["--stage", "semantic", "--precision", "bf8"], "'bf8' is not one of no, bf16"),
        (["--stage", "semantic", "--dtype", "float7"], "'float7' is not one of float32"),
        (["--stage", "semantic", "--save-dtype", "Tensor"], "'Tensor' is not one of float32"),
        (["--stage", "semantic", "--data", "nowhere"], "error: no training data at nowhere"),
        (["--stage", "detail"], "has no semantic expert yet: train --stage semantic there first"),
        (["--stage", "semantic", "--split", "50"], "split must lie inside the 50 points"),
        (["--stage", "semantic", "--loss", "l1"], "loss is 'huber' or 'l2'"),
    ],
)
def test_bad_input_is_a_clear_line(arguments, message, pipe, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = arguments if "--data" in arguments else ["--data", data, *arguments]
    result = run("distill", pipe, "--out", "out", *arguments)
    assert result.exit_code == 2
    assert message in said(result)
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists(), "nothing was begun"


def test_clips_that_are_not_there_are_a_clear_line(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("distill", "prepare", pipe, "--data", "nowhere", *SIZE)
    assert result.exit_code == 2
    assert "error: no folder at nowhere" in said(result)


def test_diagnosis_is_of_the_teacher_and_of_what_was_trained(pipe, data, experts, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "diagnose", functools.partial(diagnosis.diagnose, points=[0, 5, 49]))
    assert distill(pipe, data, tmp_path / "single", "single", "--rate", "0.01").exit_code == 0
    common = ["distill", "diagnose", pipe, "--data", data, "--batch", "1", "--batches", "1", *PATH]
    found = {}
    for name, more in (("alone", []), ("both", ["--experts", tmp_path / "single"])):
        made = run(*common, "--out", tmp_path / f"{name}.json", *more)
        assert made.exit_code == 0, made.output
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())["curves"]
    assert list(found["alone"]) == ["teacher"]
    assert list(found["both"]) == ["teacher", "trained"]
    teacher, trained = found["both"]["teacher"], found["both"]["trained"]
    assert teacher == found["alone"]["teacher"]
    assert teacher["sigma"] == trained["sigma"]
    assert len(teacher["loss"]) == len(teacher["gradient"]) == 3
    assert teacher["loss"] != trained["loss"]
    for folder, message in ((tmp_path, "no complete experts were saved there"), (experts, "holds no single model")):
        refused = run(*common, "--out", tmp_path / "none.json", "--experts", folder)
        assert refused.exit_code == 2
        assert message in said(refused)
    assert not (tmp_path / "none.json").exists()
