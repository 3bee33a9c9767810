"""Calibrations' files: several writers, records and parts that are left behind, other weights, full disks."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig
from safetensors.torch import load_file

import vaccel
from vaccel.calibrate import calibrate_forecast, calibrate_lemica, calibrate_mixcache, calibrate_teacache
from vaccel.calibrate import samples as samples_module
from vaccel.models import fingerprints
from vaccel.models.weights_digest import digest, identity
from vaccel.planning import artifacts, files, joining

STEPS = 6
CALL = {"num_inference_steps": STEPS, **{k: v for k, v in tiny.WAN_CALL.items() if k != "output_type"}}
A, B, C = "a red cat runs", "a blue dog sleeps", "a cat sleeps"


def forecast(path, prompts, pipe=None, call=CALL, **settings):
    settings = {"seeds": [0], **settings}
    pipe = pipe or tiny.wan_pipeline()
    return calibrate_forecast(pipe, prompts, path, call=call, **{"tails": 1, "trials": (0.5,), **settings})


def lemica(path, prompts, pipe=None, call=CALL, **settings):
    return calibrate_lemica(pipe or tiny.wan_pipeline(), prompts, path, call=call, **{"max_gap": 3, **settings})


def mixcache(path, prompts, pipe=None, call=CALL, **settings):
    return calibrate_mixcache(pipe or tiny.wan_pipeline(), prompts, path, call=call, **settings)


def teacache(path, prompts, pipe=None, call=CALL, **settings):
    return calibrate_teacache(pipe or tiny.wan_pipeline(), prompts, path, call=call, **settings)


ALL = {"forecast": forecast, "lemica": lemica, "mixcache": mixcache, "teacache": teacache}


def other_weights():
    pipe = tiny.wan_pipeline()
    with torch.no_grad():
        next(pipe.transformer.blocks[0].parameters()).view(-1)[0] += 1e-3
    return pipe


def adapted():
    pipe = tiny.wan_pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    return pipe


def without_times(value):
    """An artifact without what a clock says."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "seconds_recording", "times")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


class StoppedError(BaseException):
    """As by Ctrl-C."""


def stops(after):
    count = [0]

    def progress(done, total, what):
        count[0] += 1
        if count[0] > after:
            raise StoppedError

    return progress


# -- whose weights ---------------------------------------------------------------------------------------------------


def test_identity_says_what_differs():
    plain = {"transformer": tiny.wan_transformer()}
    base = identity(plain)
    assert base["adapters"] == "none"
    assert base["storage"] == "float32"
    with_lora = identity({"transformer": adapted().transformer})
    assert with_lora["weights"] == base["weights"]
    assert with_lora["adapters"] != "none"
    changed = identity({"transformer": other_weights().transformer})
    assert (changed["weights"] != base["weights"], changed["adapters"]) == (True, "none")
    assert identity({"transformer": tiny.wan_transformer().to(torch.bfloat16)})["storage"] == "bfloat16"
    two = identity({**plain, "transformer_2": tiny.wan_transformer(5)})
    assert two["weights"] != base["weights"]
    assert digest(tiny.wan_transformer()) == digest(plain["transformer"])


@pytest.mark.parametrize("kind", ALL)
def test_a_calibration_goes_on_with_its_own_weights_alone(kind, tmp_path):
    path = tmp_path / "made.json"
    ALL[kind](path, [A])
    before = path.read_bytes()
    for pipe, word in ((other_weights(), "weights"), (adapted(), "adapters"), (tiny.wan_pipeline(), "guidance_scale")):
        call = {**CALL, "guidance_scale": 7.0} if word == "guidance_scale" else CALL
        with pytest.raises(ValueError, match=rf"{path.name} is a calibration with another .*{word} .*choose another"):
            ALL[kind](path, [A, B], pipe, call)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["forecast", "lemica", "mixcache"])
def test_a_calibrated_method_runs_on_its_own_weights_alone(kind, tmp_path):
    path = tmp_path / "made.json"
    call = {**CALL, "num_inference_steps": 8}
    ALL[kind](path, [A], call=call)
    method = getattr(vaccel, {"forecast": "Forecast", "lemica": "LeMiCa", "mixcache": "MixCache"}[kind])
    budget = () if kind == "mixcache" else (4,)
    loaded = method.load(path, *budget)
    for pipe, word in ((other_weights(), "weights"), (adapted(), "adapters")):
        with pytest.raises(ValueError, match=f"model's {word} "):
            vaccel.accelerate(pipe, loaded)
        with warnings.catch_warnings(), vaccel.accelerate(pipe, method.load(path, *budget, allow_mismatch=True)) as h:
            warnings.simplefilter("ignore")
            tiny.latents(pipe, steps=8)
            assert any(word in note for note in h.trace.notes)
    pipe = tiny.wan_pipeline()
    with warnings.catch_warnings(), vaccel.accelerate(pipe, loaded):
        warnings.simplefilter("ignore")
        want = tiny.latents(pipe, steps=8)
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        with pytest.raises(ValueError, match="model's adapters none, here"):
            tiny.latents(pipe, steps=8)
        pipe.transformer.disable_adapters()
        pipe.transformer.delete_adapters("default")
        pipe.transformer.unload_lora() if hasattr(pipe.transformer, "unload_lora") else None
        if identity({"transformer": pipe.transformer})["adapters"] == "none":
            assert torch.equal(tiny.latents(pipe, steps=8), want)


def test_artifacts_of_earlier_versions_say_nothing_of_weights(tmp_path):
    path = tmp_path / "made.json"
    forecast(path, [A])
    data = artifacts.read(path, "forecast")
    data.pop("weights")
    artifacts.replace(path, data)
    with vaccel.accelerate(other_weights(), vaccel.Forecast.load(path, 4)):
        pass
    with pytest.raises(ValueError, match=r"another weights \(nothing there"):
        forecast(path, [A, B])


# -- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["guidance", "weights", "steps", "size", "none"])
def test_a_record_left_behind_is_of_its_own_call_alone(change, tmp_path):
    clean, path = tmp_path / "clean.json", tmp_path / "made.json"
    with pytest.raises(StoppedError):
        lemica(path, [A], progress=stops(0))
    path.unlink()
    (record,) = tmp_path.glob("made.json.*.record.safetensors")
    assert load_file(record)
    pipe = other_weights() if change == "weights" else tiny.wan_pipeline()
    other = {"guidance": {"guidance_scale": 7.0}, "steps": {"num_inference_steps": 8}, "size": {"height": 48}}
    call = {**CALL, **other.get(change, {})}
    want = lemica(clean, [A], pipe, call)["samples"]
    got = lemica(path, [A], pipe, call)["samples"]
    assert {k: s["errors"] for k, s in got.items()} == {k: s["errors"] for k, s in want.items()}
    recorded = {k: s["forwards"] for k, s in want.items()}
    assert {k: s["forwards"] for k, s in got.items()} == recorded
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("made.json.")] == []


@pytest.mark.parametrize("setting", [{"min_budget": 1}, {"max_gap": 1}, {"stride": 0}, {"batch": 0}])
def test_a_setting_that_is_refused_leaves_nothing(setting, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}"):
        lemica(tmp_path / "made.json", [A], **setting)
    assert not list(tmp_path.iterdir())


def test_a_record_of_a_sample_that_is_done_goes(tmp_path):
    path = tmp_path / "made.json"
    lemica(path, [A])
    key = next(iter(artifacts.read(path, "lemica")["samples"]))
    left = tmp_path / f"made.json.{key}.record.safetensors"
    left.write_bytes(b"left by a process that was killed before it could delete it")
    lemica(path, [A])
    assert not left.exists()


def test_a_call_is_told_apart_by_all_of_its_arguments():
    pipe, image = tiny.wan_pipeline(), np.zeros((4, 4), np.uint8)
    calls = [{}, {"image": image}, {"image": image + 1}, {"image": torch.zeros(2)}, {"image": torch.ones(2)},
             {"skip": [1, 2]}, {"skip": [1]}, {"kw": {"scale": 0.5}}, {"kw": {"scale": 1.0}}]  # fmt: skip
    headers = [fingerprints.header("forecast", pipe, call)["call"] for call in calls]
    assert len({json.dumps(header) for header in headers}) == len(calls)
    assert headers == [fingerprints.header("forecast", pipe, call)["call"] for call in calls]


@pytest.mark.parametrize("kind", ALL)
def test_what_a_killed_process_left_goes_even_where_nothing_is_left_to_do(kind, tmp_path):
    path = tmp_path / "made.json"
    ALL[kind](path, [A])
    before = path.read_bytes()
    (tmp_path / "made.json.lock").touch()
    (tmp_path / f"made.json.{files.host()}-999999999-00.partial").touch()
    ALL[kind](path, [A])
    assert [p.name for p in tmp_path.iterdir()] == ["made.json"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("forecast", {"tail_samples": -3}),
        ("forecast", {"trials": (0.0,)}),
        ("forecast", {"prompts": []}),
        *((kind, {"call": {**CALL, "num_inference_steps": steps}}) for kind in ALL for steps in (1, 0, -2, 10**7, "6")),
    ],
)
def test_settings_out_of_range_are_refused_before_any_forward(kind, settings, tmp_path):
    pipe = tiny.wan_pipeline()
    pipe.transformer.register_forward_pre_hook(lambda *args: pytest.fail("a forward"))
    prompts = settings.pop("prompts", [A])
    with pytest.raises(ValueError, match=r"tail_samples|trials|a prompt and a seed|num_inference_steps"):
        ALL[kind](tmp_path / "made.json", prompts, pipe, **settings)
    assert not list(tmp_path.iterdir())


# -- several writers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_a_second_writer_before_the_firsts_write(kind, tmp_path, monkeypatch):
    path, both, own = tmp_path / "made.json", tmp_path / "both.json", artifacts.write
    ALL[kind](both, [B, A])

    def paused(*args):
        monkeypatch.setattr(artifacts, "write", own)
        ALL[kind](path, [B])
        own(*args)

    monkeypatch.setattr(artifacts, "write", paused)
    ALL[kind](path, [A])
    got, want = (without_times(artifacts.read(p, kind)) for p in (path, both))
    assert got["samples"].keys() == want["samples"].keys()
    assert got["prompts"] == want["prompts"]
    if kind == "forecast":
        products = [artifacts.unpack(data["products"]) for data in (got, want)]
        np.testing.assert_allclose(*products, rtol=1e-12, atol=0)
    else:
        assert got == want
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both.json", "made.json"]


@pytest.mark.parametrize("kind", ALL)
def test_a_calibration_stopped_anywhere_ends_as_one_that_was_not(kind, tmp_path):
    clean, path = tmp_path / "clean.json", tmp_path / "made.json"
    want = without_times(ALL[kind](clean, [A, B]))
    for after in range(0, 12, 2):
        try:
            ALL[kind](path, [A, B], progress=stops(after))
        except StoppedError:
            continue
        break
    assert without_times(ALL[kind](path, [A, B])) == want
    assert without_times(ALL[kind](path, [B, A, A], seeds=[0, 0])) == want, "each sample counts once"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.json", "made.json"]


def ranks(monkeypatch, kind, path, prompts, order, world=2, **settings):
    """What torchrun's processes do, one after the other."""
    monkeypatch.setattr(samples_module.Samples, "_barrier", staticmethod(lambda: None))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        ALL[kind](path, prompts, **settings) if rank == 0 or path.exists() else _part(kind, path, prompts, settings)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")


def _part(kind, path, prompts, settings):
    with contextlib.suppress(FileNotFoundError):  # nobody has joined the parts yet
        ALL[kind](path, prompts, **settings)


@pytest.mark.parametrize("kind", ALL)
def test_parts_of_several_processes(kind, tmp_path, monkeypatch):
    clean, path = tmp_path / "clean.json", tmp_path / "made.json"
    want = without_times(ALL[kind](clean, [A, B, C]))
    ranks(monkeypatch, kind, path, [A, B], [1])
    (part,) = artifacts.parts_of(path)
    kept = part.read_bytes()
    ranks(monkeypatch, kind, path, [A, B], [0])
    part.write_bytes(kept)  # killed after it was joined, before it was deleted
    ranks(monkeypatch, kind, path, [A, B], [1, 0])
    part.write_bytes(kept)
    ALL[kind](path, [A, B])  # gone on with one process
    part.write_bytes(kept)
    ranks(monkeypatch, kind, path, [A, B, C], [1, 0])
    got = without_times(artifacts.read(path, kind))
    assert got["samples"].keys() == want["samples"].keys()
    if kind == "forecast":
        np.testing.assert_allclose(*(artifacts.unpack(d["products"]) for d in (got, want)), rtol=1e-12, atol=0)
    else:
        assert got == want
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.json", "made.json"]


def test_parts_of_another_calibration_are_named(tmp_path, monkeypatch):
    path = tmp_path / "made.json"
    ranks(monkeypatch, "teacache", path, [A, B], [1])
    with pytest.raises(ValueError, match=r"made\.json\.part1 is a calibration with another call guidance_scale"):
        teacache(path, [A], call={**CALL, "guidance_scale": 7.0})


def _writer(path, number, count):
    sample = {"embedding": [0.1, 0.2], "output": [0.2, 0.1]}
    for k in range(count):
        data = {"schema": artifacts.SCHEMA, "method": "teacache", "retention": False, "prompts": "",
                "model": {"class": "M", "config": "c"}, "scheduler": {"class": "S", "config": {}},
                "samples": {f"{number}-{k}": sample}}  # fmt: skip
        artifacts.write(path, data)


def test_processes_that_write_at_once(tmp_path):
    """The lock's file is deleted by whoever holds it: nobody may hold one that is gone."""
    path, count, spawn = tmp_path / "made.json", 12, multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_writer, args=(path, number, count)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    held = artifacts.read(path, "teacache")["samples"]
    assert held.keys() == {f"{n}-{k}" for n in range(4) for k in range(count)}
    assert [p.name for p in tmp_path.iterdir()] == ["made.json"]


def _killed(path, at):
    real = getattr(os, at)

    def killed(*args):
        if not str(args[0]).endswith(".partial"):
            return real(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, at, killed)
    files.write_text(path, "new")


def test_a_writer_that_is_killed(tmp_path):
    path = tmp_path / "made.json"
    path.write_text("old")
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(path, "replace"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    files.write_text(path, "newer")
    assert [p.name for p in tmp_path.iterdir()] == ["made.json"]
    assert path.read_text() == "newer"


def test_partial_files_of_living_and_foreign_writers_stay(tmp_path):
    path = tmp_path / "made.json"
    host = files.host()
    mine, foreign = (tmp_path / f"made.json.{h}-{os.getpid()}-00ff.partial" for h in (host, "elsewhere"))
    others = tmp_path / f"made.json.key.record.safetensors.{host}-999999999-00.partial"
    for stay in (mine, foreign, others):
        stay.touch()
    (tmp_path / "made.json.partial").touch()
    files.write_text(path, "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in (path, mine, foreign, others))


def test_a_lock_that_is_kept(tmp_path):
    path = tmp_path / "made.json"
    said = pytest.raises(TimeoutError, match=r"locked by another process.*delete .*made\.json\.lock")
    with files.locked(path), said, files.locked(path, patience=0.05):
        pass
    with files.locked(path, patience=0.05):
        pass


@pytest.mark.parametrize("kind", ALL)
def test_a_full_disk_leaves_the_last_state_whole(kind, tmp_path, monkeypatch):
    path = tmp_path / "made.json"
    ALL[kind](path, [A])
    before, own = path.read_bytes(), os.fsync

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ALL[kind](path, [A, B])
    assert path.read_bytes() == before
    monkeypatch.setattr(os, "fsync", own)
    assert set(ALL[kind](path, [A, B])["samples"]) > set(json.loads(before)["samples"])
    assert [p.name for p in tmp_path.iterdir()] == ["made.json"]


# -- joining ---------------------------------------------------------------------------------------------------------


def test_joining_the_same_twice_changes_nothing(tmp_path):
    for kind, calibrate in ALL.items():
        path = tmp_path / f"{kind}.json"
        calibrate(path, [A, B])
        data = artifacts.read(path, kind)
        assert joining.joined(data, data) == data
        artifacts.write(path, data)
        assert artifacts.read(path, kind) == data


def test_a_sum_that_was_replaced_meanwhile_is_not_mixed(tmp_path):
    path, other = tmp_path / "made.json", tmp_path / "other.json"
    forecast(path, [A])
    forecast(other, [B])
    with pytest.raises(ValueError, match="it was replaced"):
        joining.joined(artifacts.read(path, "forecast"), artifacts.read(other, "forecast"))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("place", ["file/made.json", "folder", "/proc/made.json"])
def test_a_place_that_cannot_be_written_is_refused_before_any_forward(kind, place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    pipe = tiny.wan_pipeline()
    pipe.transformer.register_forward_pre_hook(lambda *args: pytest.fail("a forward"))
    with pytest.raises((OSError, ValueError), match=r"cannot be written|is a folder"):
        ALL[kind](Path(tmp_path / place), [A], pipe)
