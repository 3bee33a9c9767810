"""``generate --ray`` and ``calibrate --ray`` with real pipelines in Ray's processes: the bits of one process."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import psutil
import pytest
import tiny
from typer.testing import CliRunner

from vaccel.cli import app
from vaccel.cluster import actors

pytest.importorskip("ray", reason="the extra test brings Ray, where there is one for this Python")
CALL = [x for a in ("height=32", "width=32", "num_frames=9", "max_sequence_length=8") for x in ("--call", a)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a saved pipeline and prompts, and a cluster of this process's own, which ``--ray local`` is."""
    folder = tmp_path_factory.mktemp("place")
    tiny.wan_pipeline().save_pretrained(folder / "tinywan")
    (folder / "prompts.txt").write_text("a red cat runs\na blue dog sleeps\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        )
        patch.chdir(folder)
        with actors.connected("local"):
            assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
            yield folder
    left = [p for p in psutil.Process().children(recursive=True) if "ray" in p.name() or "gcs" in p.name()]
    assert not psutil.wait_procs(left, timeout=20)[1], "Ray's processes end with the connection"


def run(*words):
    result = CliRunner().invoke(app, [*words, "--prompts", "prompts.txt", "--steps", "4", *CALL])
    assert result.exit_code == 0, result.output
    return result.output


def test_clips(place):
    words = ["generate", "--pipeline", "tinywan", "-m", "Schedule([0, 2], num_steps=4)"]
    run(*words, "--out", "one")
    said = run(*words, "--out", "many", "--ray", "local", "--workers", "1")
    assert "1/2 " in said
    assert "2 clips made, 0 were there" in said
    assert "\x1b" not in said
    digests = [{p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (place / name).glob("*.mp4")}
               for name in ("one", "many")]  # fmt: skip
    assert len(digests[0]) == 2
    assert digests[0] == digests[1]
    texts = [(place / name / "manifest.jsonl").read_text() for name in ("one", "many")]
    one, many = ([{**json.loads(line), "seconds": 0} for line in text.splitlines()] for text in texts)
    assert one == many
    assert "0 clips made, 2 were there" in run(*words, "--out", "many"), "one process goes on where workers ended"
    assert {p.name for p in (place / "many").iterdir()} == {*digests[0], "manifest.jsonl"}


def test_a_calibration(place):
    run("calibrate", "teacache", "tinywan", "--out", "one.json")
    assert "2 samples" in run(
        "calibrate", "teacache", "tinywan", "--out", "many.json", "--ray", "local", "--workers", "1"
    )
    assert (place / "one.json").read_bytes() == (place / "many.json").read_bytes()
