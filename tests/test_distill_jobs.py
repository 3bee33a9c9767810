"""Distillation as a job: refused before it begins, whole after every ending, never going on from damaged files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from unittest import mock

import processes
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_distill_training import CALL, clips, curve, no_pictures, prepared, settings

import vaccel.cli
from vaccel.cli.console import clear_errors
from vaccel.distill import Shards, outputs, plots, prepare
from vaccel.distill.stages import Samples, train
from vaccel.planning import artifacts, leftovers


@pytest.fixture(autouse=True)
def _no_pictures():
    with no_pictures():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("data"))


def trained(data, out, steps=2, **options):
    return train(options.pop("pipe", None) or tiny.wan_pipeline(), data, out, settings("semantic", steps), **options)


def nothing_left(folder) -> bool:
    return not [p for p in folder.rglob("*") if leftovers.recognised(p) is not None]


@contextlib.contextmanager
def no_forward(pipe):
    def forward(*_):
        raise AssertionError("a forward was run")

    with (
        mock.patch.object(type(pipe.transformer), "forward", forward),
        mock.patch.object(type(pipe.vae), "encode", forward),
    ):
        yield


# -- before the first forward -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["file", "below a file", "/proc/none", "link to nowhere"])
def test_places_that_cannot_be_written_into(where, data, tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to(tmp_path / "none" / "there")
    out = {"file": file, "below a file": file / "out", "link to nowhere": link}.get(where, where)
    pipe = tiny.wan_pipeline()
    with no_forward(pipe), pytest.raises(ValueError, match="cannot be written into"):
        trained(data, out, pipe=pipe)
    with no_forward(pipe), pytest.raises(ValueError, match="cannot be written into"):
        prepare(pipe, clips(1), out, call=CALL)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": 0}, "parts must be a whole number of at least 1, got 0"),
        ({"save_every": 0}, "save_every must be"),
        ({"save_every": float("nan")}, "save_every must be"),
        ({"workers": -1}, "workers must be a whole number of at least 0"),
        ({"call": {"bogus": 1}}, "WanPipeline's call takes no bogus"),
        ({"call": {"height": "abc"}}, "height must be int, got 'abc'"),
        ({"call": {"guidance_scale": float("nan")}}, "guidance_scale must be a finite number, got nan"),
    ],
)
def test_arguments_that_make_no_sense(options, message, data, tmp_path):
    pipe = tiny.wan_pipeline()
    with no_forward(pipe), pytest.raises(ValueError, match=message):
        trained(data, tmp_path / "out", pipe=pipe, **options)
    if "call" in options:
        with no_forward(pipe), pytest.raises(ValueError, match=message):
            prepare(pipe, clips(1), tmp_path / "data", call={**CALL, **options["call"]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [{"every": 0}, {"steps": 1}, {"steps": 2.5}, {"seed": -1}, {"prompts": (3,)}])
def test_samples_that_make_no_sense(given):
    with pytest.raises(ValueError, match=r"must be a whole number|prompts are strings"):
        Samples(**given)


def test_clips_and_sizes_that_make_no_sense(tmp_path):
    pipe, nan = tiny.wan_pipeline(), torch.full((9, 32, 32, 3), float("nan"))
    for clip, message in ((nan, "clips lie in"), (nan[:0], "is empty")):
        with pytest.raises(ValueError, match=message):
            prepare(pipe, [("a cat", clip)], tmp_path / "out", call=CALL)
    for given in ({"shard_size": 0}, {"shard_size": 2.0}, {"total": 0}, {"total": True}):
        with no_forward(pipe), pytest.raises(ValueError, match="must be a whole number of at least 1"):
            prepare(pipe, clips(1), tmp_path / "out", call=CALL, **given)
    with pytest.raises(ValueError, match=r"one of .*float32.* not torch\.int8"):
        prepare(pipe, clips(1), tmp_path / "out", call=CALL, dtype=torch.int8)
    assert list(tmp_path.iterdir()) == []


# -- what it goes on from ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("half")
    trained(data, out, 1)
    return out


def checkpoint_of(out):
    return out / "training" / "semantic" / "checkpoint.safetensors"


def rewritten(path, change, about=lambda said: said):
    """Writes a checkpoint anew, with its tensors and description changed."""
    with safe_open(path, "pt") as f:
        said = json.loads(f.metadata()["about"])
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"about": json.dumps(about(said))})


def test_damaged_checkpoints_are_refused_and_left_alone(data, half, tmp_path):
    trained(data, tmp_path, 1)
    path = checkpoint_of(tmp_path)
    whole = path.read_bytes()
    name = "student.proj_out.bias"

    def flipped():
        content = bytearray(whole)
        content[-3] ^= 16
        path.write_bytes(content)

    no_contents = lambda said: {k: v for k, v in said.items() if k != "contents"}  # noqa: E731
    damages = {
        "cut short": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "is no safetensors file": lambda: path.write_bytes(b""),
        "contents were changed": flipped,
        f"{name} is in the networks alone": lambda: rewritten(path, lambda t: t.pop(name), no_contents),
        f"{name} is \\[3\\]": lambda: rewritten(path, lambda t: t.update({name: torch.zeros(3)}), no_contents),
        "optimizer.0 is not the state": lambda: rewritten(path, lambda t: t.pop("optimizer.0.exp_avg"), no_contents),
        "iteration must be a whole number, got '7'": lambda: rewritten(path, len, lambda s: {**s, "iteration": "7"}),
        "iteration must be 0 or more": lambda: rewritten(path, len, lambda s: {**s, "iteration": -2}),
        "settings must be an object, got null": lambda: rewritten(path, len, lambda s: {**s, "settings": None}),
    }
    for message, damage in damages.items():
        path.write_bytes(whole)
        damage()
        broken = path.read_bytes()
        with pytest.raises(ValueError, match=message) as error:
            trained(data, tmp_path, 2)
        assert str(path) in str(error.value)
        assert "start this stage anew" in str(error.value)
        assert path.read_bytes() == broken
    path.write_bytes(whole)
    trained(data, tmp_path, 2)


def test_other_base_weights_are_refused_by_name(data, half, tmp_path):
    trained(data, tmp_path, 1)
    other = tiny.wan_pipeline(transformer=tiny.wan_transformer(9))
    with no_forward(other), pytest.raises(ValueError, match=r"checkpoint.safetensors was made with other base weights"):
        trained(data, tmp_path, 2, pipe=other)
    with pytest.raises(ValueError, match="made from other weights"):
        train(other, data, tmp_path, settings("detail", 1))
    # An earlier version's checkpoint says nothing of weights, and has a field of everything else.
    path = checkpoint_of(tmp_path)
    with safe_open(path, "pt") as f:
        said = json.loads(f.metadata()["about"])
    del said["made_with"]["weights"], said["contents"]
    save_file(load_file(path), path, {name: json.dumps(value) for name, value in said.items()})
    trained(data, tmp_path, 2)
    assert [line["iteration"] for line in curve(tmp_path, "semantic")] == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": ["a"]}, "captions must have 6 entries, got 1"),
        ({"shards": [{"file": "../x", "count": 4}, {"file": "y", "count": 2}]}, r"shards\[0\].file must be"),
        ({"shards": [{"file": "x", "count": 6}]}, r"shards\[0\].count must be 4"),
        ({"shards": []}, "shards must be a list of objects, at least 1 long"),
        ({"latents": None}, "latents must be a list of whole numbers"),
        ({"arguments": {"rows": [], "cond": {"a": {"odd": 1}}, "uncond": None}}, "arguments.cond.a must be an object"),
        ({"arguments": {"rows": [], "cond": {"a": {"tensor": "none"}}, "uncond": None}}, "has no tensor none"),
        ({"arguments": {"rows": ["odd"], "cond": {}, "uncond": None}}, "has no cond.odd"),
        ({"family": "none"}, "family must be one of"),
        ({"count": 7}, "must be 3, of 7 samples"),
        ({"latents": [1, 2, 3, 4]}, r"latents is \[4, 16, .*, index.json says"),
    ],
)  # fmt: skip
def test_an_index_that_was_edited_and_sealed_again(change, message, data, tmp_path):
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = artifacts.read(data / "index.json", "dcm-data")
    artifacts.write(tmp_path / "index.json", {**index, **change})
    with pytest.raises(ValueError, match=message) as error:
        Shards(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "prepare the data anew" in str(error.value)


def test_files_of_data_that_are_damaged(data, tmp_path):
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    pipe = tiny.wan_pipeline()
    for name in ("shard-00001.safetensors", "shared.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for content, match in (
            (whole[:40], f"{name} is no safetensors file, or was cut short"),
            (None, f"{name} is gone"),
        ):
            (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
            with pytest.raises((ValueError, FileNotFoundError), match=match):
                Shards(tmp_path)
            with no_forward(pipe), pytest.raises((ValueError, FileNotFoundError), match=match):
                prepare(pipe, clips(), tmp_path, call=CALL, shard_size=4)
        (tmp_path / name).write_bytes(whole)
    Shards(tmp_path)


# -- endings ----------------------------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["checkpoint", "experts", "log", "safetensors"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(what, data, half, tmp_path):
    trained(data, tmp_path, 1)
    before = {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    places = {"checkpoint": "save_file", "experts": "write", "safetensors": "save_file"}
    if what == "log":
        log = tmp_path / "training" / "semantic" / "log.jsonl"
        log.unlink()
        log.symlink_to("/dev/full")
        failing = contextlib.nullcontext()
    else:
        failing = mock.patch.object(artifacts, places[what], full)
    with failing, pytest.raises(OSError, match="No space left") as error:
        trained(data, tmp_path, 2)
    assert str(tmp_path) in str(error.value)
    assert nothing_left(tmp_path)
    if what != "experts":
        assert checkpoint_of(tmp_path).read_bytes() == before["checkpoint.safetensors"]
        assert (tmp_path / "semantic.safetensors").read_bytes() == before["semantic.safetensors"]
    if what == "log":
        log.unlink()
    trained(data, tmp_path, 2)
    assert vaccel.distill.checkpoint.read(checkpoint_of(tmp_path), {"iteration": int})[1]["iteration"] == 2


def test_a_full_disk_while_preparing(data, tmp_path):
    for place in ("save_file", "write"):
        with mock.patch.object(artifacts, place, full), pytest.raises(OSError, match=f"No space left.*{tmp_path}"):
            prepare(tiny.wan_pipeline(), clips(), tmp_path / "data", call=CALL, shard_size=4)
        assert nothing_left(tmp_path)
    prepare(tiny.wan_pipeline(), clips(), tmp_path / "data", call=CALL, shard_size=4)
    for file in data.iterdir():
        assert (tmp_path / "data" / file.name).read_bytes() == file.read_bytes()


def test_samples_wait_no_longer_than_a_while_for_their_shard(tmp_path, monkeypatch):
    monkeypatch.setattr("vaccel.distill.shard_store.WRITE_AFTER", -1.0)
    counts = []
    prepare(
        tiny.wan_pipeline(), clips(3), tmp_path, call=CALL, shard_size=4,
        progress=lambda *_: counts.append(len(Shards(tmp_path)) if (tmp_path / "index.json").exists() else 0),
    )  # fmt: skip
    assert counts == [0, 1, 2, 3]


def killed_while_writing(data, out, name):
    """In a process of its own: killed in the middle of a file, with half of it on the disk."""
    own = artifacts.save_file

    def half(tensors, path, **given):
        if name in str(path):
            own(tensors, path, **given)
            os.truncate(path, 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        own(tensors, path, **given)

    with mock.patch.object(artifacts, "save_file", half), mock.patch.object(plots, "losses"):
        if name.startswith("shard"):
            prepare(tiny.wan_pipeline(), clips(), out, call=CALL, shard_size=4)
        else:
            trained(data, out, 2)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "semantic.safetensors", "shard-00001"])
def test_half_a_file_of_a_killed_process_goes_at_the_next_start(name, data, tmp_path):
    running = processes.start(killed_while_writing, data, tmp_path, name)
    running.join(60)
    assert running.exitcode == -signal.SIGKILL
    assert not nothing_left(tmp_path)
    if name.startswith("shard"):
        prepare(tiny.wan_pipeline(), clips(), tmp_path, call=CALL, shard_size=4)
        assert all((tmp_path / file.name).read_bytes() == file.read_bytes() for file in data.iterdir())
    else:
        trained(data, tmp_path, 2)
        assert [line["iteration"] for line in curve(tmp_path, "semantic")] == [1, 2]
    assert nothing_left(tmp_path)


def by_command(data, pipe, out, ready, number):
    """In a process of its own: the command, which waits for a signal in its second iteration."""
    arguments = [
        "--data",
        data,
        "--out",
        out,
        "--stage",
        "semantic",
        "--iterations",
        4,
        "--batch",
        2,
        "--save-every",
        1,
    ]
    small = ["--split", 6, "--shift", 5, "--guidance", 3, "--points", 10, "--lag", 1]
    from vaccel.distill.trainer import Trainer

    iterate = Trainer.iterate

    def slow(self, batches):
        if self.iteration == 1 and number:
            ready.send(True)
            time.sleep(60)
        return iterate(self, batches)

    with mock.patch.object(plots, "losses"), mock.patch.object(Trainer, "iterate", slow):
        vaccel.cli.app([str(a) for a in ["distill", "train", pipe, *arguments, *small]])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_the_command_with_everything_whole(number, status, data, tmp_path):
    pipe, out = tmp_path / "pipe", tmp_path / "out"
    tiny.wan_pipeline().save_pretrained(pipe)
    here, there = processes.pipe()
    running = processes.start(by_command, data, pipe, out, there, number)
    assert here.recv()
    os.kill(running.pid, number)
    running.join(30)
    assert running.exitcode == status
    assert nothing_left(tmp_path)
    assert vaccel.distill.checkpoint.read(checkpoint_of(out), {"iteration": int})[1]["iteration"] == 1
    processes.finish(processes.start(by_command, data, pipe, out, there, 0))
    assert [line["iteration"] for line in curve(out, "semantic")] == [1, 2, 3, 4]


def test_the_handler_of_sigterm_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with clear_errors("nothing"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def holding(folder, ready):
    with outputs.claimed(folder):
        ready.send(True)
        time.sleep(60)


def test_one_process_at_a_time(data, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "PATIENCE", 0.2)
    here, there = processes.pipe()
    folder = tmp_path / "training" / "semantic"
    running = processes.start(holding, folder, there)
    assert here.recv()
    with pytest.raises(ValueError, match="another process is writing into"):
        trained(data, tmp_path, 1)
    running.kill()
    running.join()
    trained(data, tmp_path, 1)
