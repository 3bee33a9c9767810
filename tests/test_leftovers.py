"""What killed processes leave behind: found by name, described, and deleted where no running process uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vaccel.cli import app
from vaccel.planning import files, leftovers

KEY = "0123456789ab-0"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> Path:
    """A cache and a temporary folder of the test's own; returns the folder to look into."""
    for name in ("cache", "temporary", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "work"


def artifact(path: Path, **samples) -> None:
    path.write_text(json.dumps({"samples": samples}))


def dead() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def doctor(*arguments: object) -> tuple[int, dict[str, dict]]:
    result = CliRunner().invoke(app, ["doctor", "--json", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return {Path(one["path"]).name: one for one in json.loads(result.output)["leftovers"]}


def test_what_is_stale_is_named_and_removed(places, tmp_path):
    artifact(places / "lemica.json", **{KEY: {"done": True}}, other={"done": False})
    stale = {
        f"forecast.json.{dead()}-0a1b2c3d.partial": ("partial file", "forecast.json"),
        f"checkpoint.safetensors.{dead()}-ab.partial": ("partial file", "checkpoint.safetensors"),
        "semantic.safetensors.partial": ("partial file", "semantic.safetensors"),
        "semantic.safetensors.partial.partial": ("partial file", "semantic.safetensors.partial"),
        "rows.jsonl.partial": ("partial file", "rows.jsonl"),
        f"lemica.json.{KEY}.record.safetensors": ("LeMiCa record", "lemica.json"),
        f"lemica.json.{KEY}.safetensors": ("LeMiCa record", "lemica.json"),
        "lemica.json.part3": ("torchrun part", "lemica.json"),
        "forecast.json.lock": ("lock", "forecast.json"),
    }
    for name in stale:
        (places / name).write_bytes(b"x" * 10)
    artifact(places / "lemica.json.part3", **{KEY: {}})
    (tmp_path / "cache" / "vaccel" / "auto").mkdir(parents=True)
    (tmp_path / "cache" / "vaccel" / "auto" / "times.json.partial").write_text("{")
    bystanders = [
        "movie.partial",
        "a.lock",
        "model.safetensors",
        "poetry.lock",
        f"x.{KEY}.safetensors",
        "lemica.party1",
    ]
    for name in bystanders:
        (places / name).write_text("not ours")
    found = doctor("--leftovers", places)
    assert {n: (one["kind"], Path(one["of"]).name) for n, one in found.items()} == {
        **stale, "times.json.partial": ("partial file", "times.json"),
    }  # fmt: skip
    assert {one["state"] for one in found.values()} == {"left behind"}
    assert found["rows.jsonl.partial"]["bytes"] == 10
    assert all((places / name).exists() for name in stale), "nothing is removed unasked"
    assert {one["state"] for one in doctor("--leftovers", places, "--remove").values()} == {"removed"}
    assert sorted(p.name for p in places.iterdir()) == sorted([*bystanders, "lemica.json"])
    assert doctor("--leftovers", places) == {}


def test_what_a_running_process_uses_stays(places):
    holding = (
        "import fcntl, sys, time; kept = open(sys.argv[1]); lock = open(sys.argv[2], 'w');"
        "fcntl.flock(lock, fcntl.LOCK_EX); print('ready', flush=True); time.sleep(600)"
    )
    opened, lock = places / "rows.jsonl.partial", places / "mix.json.lock"
    opened.write_text("{")
    other = subprocess.Popen([sys.executable, "-c", holding, str(opened), str(lock)], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        mine = places / f"forecast.json.{other.pid}-00.partial"
        of_locked = places / "mix.json.part0"
        mine.write_text("{")
        of_locked.write_text("{")
        found = doctor("--leftovers", places, "--remove", "--unfinished")
        assert {one["state"] for one in found.values()} == {"in use"}
        assert len(found) == 4
    finally:
        other.kill()
        other.wait()
    assert {one["state"] for one in doctor("--leftovers", places, "--remove", "--unfinished").values()} == {"removed"}


def test_a_number_that_another_process_has_by_now_is_not_its_maker(places):
    path = places / f"forecast.json.{os.getpid()}-00.partial"
    path.write_text("{")
    assert doctor("--leftovers", places)[path.name]["state"] == "in use"
    os.utime(path, (time.time() - 10**7,) * 2)  # from before this process
    assert doctor("--leftovers", places)[path.name]["state"] == "left behind"


def test_what_a_calibration_would_go_on_from_is_kept(places):
    artifact(places / "lemica.json", **{KEY: {"done": False}})
    artifact(places / "lemica.json.part0", fresh={})
    record = places / f"lemica.json.{KEY}.record.safetensors"
    record.write_text("x")
    for found in (doctor("--leftovers", places), doctor("--leftovers", places, "--remove")):
        assert {one["state"] for one in found.values()} == {"unfinished: the same calibration goes on from it"}
    assert record.exists()
    doctor("--leftovers", places, "--remove", "--unfinished")
    assert [p.name for p in places.iterdir()] == ["lemica.json"]


def test_weights_that_earlier_versions_parked(tmp_path, monkeypatch):
    parked = tmp_path / "temporary" / "vaccel-abc"
    parked.mkdir()
    (parked / "original.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "temporary" / "vaccel-others").mkdir()
    monkeypatch.setattr(leftovers, "_may_have_parked", lambda *_: True)
    assert doctor("--remove")["vaccel-abc"]["state"] == "in use"
    monkeypatch.setattr(leftovers, "_may_have_parked", lambda *_: False)
    found = doctor("--remove")["vaccel-abc"]
    assert (found["kind"], found["bytes"], found["state"]) == ("parked weights", 1000, "removed")
    assert [p.name for p in (tmp_path / "temporary").iterdir()] == ["vaccel-others"]


def test_temporary_names_are_recognised_and_unique(places):
    names = {files.temporary(places / "a.json") for _ in range(50)}
    assert len(names) == 50
    for name in names:
        name.touch()
        found = leftovers.recognised(name)
        assert (found.kind, found.of, found.used) == ("partial file", places / "a.json", True)


def test_links_and_folders_are_not_followed(places, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.json.partial").write_text("x")
    (places / "link").symlink_to(outside)
    (places / "b.json.partial").symlink_to(outside / "a.json.partial")
    (places / "c.json.partial").mkdir()
    assert doctor("--leftovers", places, "--remove") == {}
    assert (outside / "a.json.partial").exists()


def test_text(places):
    (places / "a[b].json.partial").write_text("x" * 2000)
    result = CliRunner().invoke(app, ["doctor", "--leftovers", str(places)])
    assert f"{places}/a[b].json.partial  2 kB  partial file of {places}/a[b].json  left behind" in result.output
    assert "1 left behind, 2 kB; --remove deletes them" in result.output
    refused = CliRunner().invoke(app, ["doctor", "--leftovers", str(places / "none")])
    assert (refused.exit_code, "no folder at" in refused.output) == (2, True)
    assert CliRunner().invoke(app, ["doctor", "--unfinished"]).exit_code == 2


def test_without_torch(places):
    code = (
        "import sys; from vaccel.cli import app; app(['doctor', '--leftovers', sys.argv[1]], standalone_mode=False);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(places)], check=True, capture_output=True)
