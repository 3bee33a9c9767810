"""What is handed out to workers, whatever they do: the same clips and artifacts as in one process, each once."""

from __future__ import annotations

import collections
import contextlib
import json
import random
from pathlib import Path

import msgspec
import pytest
import tiny
import torch
from crew_double import FINGERPRINT, Here, Plain, content_of
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vaccel import calibrate
from vaccel.batch import Making, Manifest, alone, jobs_of
from vaccel.batch import make_all as made_here
from vaccel.cli import app
from vaccel.cli.loading import Loaded
from vaccel.cluster import actors, messages
from vaccel.cluster.clips import options_of
from vaccel.cluster.crew import Crew, CrewError
from vaccel.cluster.making import make_all
from vaccel.cluster.messages import Clip, Greeting, Ready, Reply, Setup, Task
from vaccel.cluster.recording import record
from vaccel.cluster.worker import Worker
from vaccel.evaluate import parse_contender
from vaccel.models import fingerprints

PROMPTS = [f"clip {number}" for number in range(5)]
REAL = ["a red cat runs", "a blue dog sleeps", "a red dog"]
CALL = ["height=32", "width=32", "num_frames=9", "max_sequence_length=8"]


def crew(host, count=2, setup=None, **options):
    return Crew(host, setup or Setup("clips", "", 4), count, **options)


def made(host, folder, prompts=PROMPTS, count=2, progress=lambda *_: None, **options):
    with crew(host, count, **options) as workers:
        workers.open(len(prompts))
        return make_all(workers, Manifest(folder, FINGERPRINT), jobs_of(prompts), "mine", progress)


def lines(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def whole(folder, prompts=PROMPTS):
    """Every clip once, as it is made alone, and nothing else."""
    found = collections.Counter(one["prompt"] for one in lines(folder) if "file" in one)
    assert found == dict.fromkeys(prompts, 1)
    manifest = Manifest(folder, FINGERPRINT)
    for job in jobs_of(prompts):
        assert (folder / manifest.name(job)).read_bytes() == content_of(job.prompt, job.seed)
    assert len(list(folder.iterdir())) == len(prompts) + 1


# -- handing out -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), lost=st.sets(st.integers(1, 9), max_size=2))
def test_every_clip_once_whoever_is_lost(tmp_path_factory, seed, count, lost):
    folder, shown = tmp_path_factory.mktemp("clips"), []
    host = Here(Plain, random.Random(seed), lambda method, number: method == "work" and number in lost)
    found = made(host, folder, count=count, progress=lambda *said: shown.append(said))
    assert [each.error for each in found] == [""] * len(PROMPTS)
    whole(folder)
    assert lines(folder)[0] | {"prompt": 0, "file": 0} == {
        "prompt": 0, "seed": 0, "fingerprint": FINGERPRINT, "file": 0, "method": "mine", "seconds": 0.5,
        "timeline": "Fo"}  # fmt: skip
    assert [done for done, _, _ in shown] == sorted(done for done, _, _ in shown)
    assert shown[-1] == (5, 5, "done")
    assert host.alive == 0, "no worker is left"
    assert made(Here(), folder) == [], "nothing is left to do"


def test_what_was_stopped_anywhere_goes_on(tmp_path):
    """Ctrl-C at any moment: what workers had ready is kept, nothing is made twice."""
    for at in range(1, 8):
        folder, calls = tmp_path / str(at), []

        def seen(method, number, calls=calls, at=at):
            calls.append(method)
            if len(calls) == at:
                raise KeyboardInterrupt

        folder.mkdir()
        host = Here(Plain, random.Random(at), seen=seen)
        with pytest.raises(KeyboardInterrupt):
            made(host, folder)
        finished = len(lines(folder)) if (folder / "manifest.jsonl").exists() else 0
        assert finished == max(0, calls[:-1].count("work"))
        assert host.alive == 0
        assert len(made(Here(), folder)) == len(PROMPTS) - finished
        whole(folder)


def test_a_clip_that_is_being_written_when_it_is_stopped_is_kept(tmp_path, monkeypatch):
    own, stopped = Manifest.add, []

    def add(self, job, **said):
        if not stopped:
            stopped.append(job)
            raise KeyboardInterrupt
        own(self, job, **said)

    monkeypatch.setattr(Manifest, "add", add)
    with pytest.raises(KeyboardInterrupt):
        made(Here(), tmp_path)
    assert lines(tmp_path)[0]["prompt"] == stopped[0].prompt


def test_one_that_loses_its_workers_every_time_costs_only_itself(tmp_path):
    told: list[str] = []
    host = Here()
    own = host.answer

    def answer(call, most):
        if call[2] == "work" and messages.read(call[3], Task).prompt == PROMPTS[1]:
            host.ended[call] = None
        return own(call, most)

    host.answer = answer
    found = made(host, tmp_path, say=told.append)
    failed = {each.job.prompt: each.error for each in found if each.error}
    assert failed == {PROMPTS[1]: "its worker was lost 3 times, at last: the process is gone"}
    assert len(told) == 3
    assert len([one for one in lines(tmp_path) if "file" in one]) == 4
    assert made(Here(), tmp_path)[0].job.prompt == PROMPTS[1], "it is tried again by the next command"


def test_one_that_fails_is_told_of(tmp_path):
    found = made(Here(), tmp_path, ["a", "odd", "b"])
    assert [each.error for each in sorted(found, key=lambda each: each.job.number)] == [
        "", "RuntimeError: the prompt is too odd", ""]  # fmt: skip


def test_a_worker_whose_disk_is_full_is_replaced(tmp_path):
    class Full(Plain):
        def work(self, task):
            return messages.failed(OSError(28, "No space left on device"), "machine")

    kinds = iter([Full, Plain, Plain])
    told = []
    made(Here(lambda: next(kinds)()), tmp_path, count=1, say=told.append)
    whole(tmp_path)
    assert told == ["a worker on here was lost: [Errno 28] No space left on device; another takes its task"]


def test_no_worker_can_be_started(tmp_path):
    host = Here(losing=lambda method, number: method == "hello")
    with pytest.raises(CrewError, match="no worker could be started, 3 times in a row: the process is gone"):
        made(host, tmp_path)
    assert host.alive == 0


@pytest.mark.parametrize(("method", "answer", "says"), [
    ("hello", Greeting({"vaccel": "0.0.1", "torch": "1.0"}, "far\x1b[31m"), r"worker on far.*has vaccel 0\.0\.1, "
     r"torch 1\.0, diffusers none, .*this machine vaccel .*: install the same on every machine"),
    ("load", None, r"^no such folder \(the worker on here\)$"),
])  # fmt: skip
def test_workers_that_cannot_be_used_are_refused_in_one_line(method, answer, says, tmp_path):
    class Other(Plain):
        pass

    reply = Reply(messages.write(answer)) if answer else Reply(error="no such\nfolder", fault="setup")
    setattr(Other, method, lambda self, data: messages.write(reply))
    host = Here(Other)
    with pytest.raises(ValueError, match=says) as refused:
        made(host, tmp_path)
    assert str(refused.value).isprintable()
    assert host.alive == 0
    assert list(tmp_path.iterdir()) == []


def test_workers_with_other_weights_than_the_first_are_refused(tmp_path):
    class Other(Plain):
        def load(self, setup):
            return messages.write(Reply(messages.write(Ready(next(prints)))))

    prints = iter([FINGERPRINT, "f" * 16])
    with pytest.raises(ValueError, match="other weights or another scheduler than the first"):
        made(Here(Other), tmp_path)


# -- what is sent ----------------------------------------------------------------------------------------------------


def packed(**fields):
    return messages.write(Reply(msgspec.msgpack.encode(fields)))


@pytest.mark.parametrize("answer", [
    b"", b"\xc1", "text", None, {"data": b""}, b"\x80" * 10**6, messages.write(Reply(b"no clip")),
    packed(content=b"MZ no film", seconds=1.0), packed(content=content_of("a", 0), seconds=float("nan")),
    packed(content=content_of("a", 0), seconds=1.0, file="../../out.mp4"),
    packed(content=content_of("a", 0), seconds=1.0, prompt="b"),
    packed(content=content_of("a", 0), seconds=1.0, predicted={"psnr": "high"}),
    packed(content="text", seconds=1.0), packed(seconds=1.0), msgspec.msgpack.encode({"data": 3}),
    msgspec.msgpack.encode({"fault": "other"}), msgspec.msgpack.encode([[[[]]]] * 100),
])  # fmt: skip
def test_whatever_a_worker_sends_stays_out(answer, tmp_path):
    class Odd(Plain):
        def work(self, task):
            return answer

    folder = tmp_path / "in" / "clips"
    folder.mkdir(parents=True)
    found = made(Here(Odd), folder, ["a"])
    assert found[0].error
    assert found[0].error.isprintable()
    assert [p.name for p in folder.iterdir()] == ["manifest.jsonl"]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [folder / "manifest.jsonl"]
    made(Here(), folder, ["a"])
    whole(folder, ["a"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.binary(max_size=200), kind=st.sampled_from([Clip, Greeting, Ready, Reply, Setup, Task]))
def test_any_bytes_are_a_message_or_refused(data, kind):
    found = None
    with contextlib.suppress(ValueError):
        found = messages.read(data, kind)
    assert found is None or isinstance(found, kind)


@pytest.mark.parametrize("data", [b"", b"\xc1", messages.write(Setup("odd", "/nowhere", 4, threads=1)), b"\x91" * 500])
def test_a_real_worker_answers_whatever_it_is_told(data):
    reply = messages.read(Worker().load(data), Reply)
    assert reply.fault == "setup"
    assert reply.error
    assert messages.read(Worker().work(data), Reply).fault == "task"


@pytest.mark.parametrize("full", ["manifest", "clip"])
def test_a_full_disk_of_the_driver_loses_nothing(full, tmp_path, monkeypatch):
    if full == "manifest":
        (tmp_path / "manifest.jsonl").symlink_to("/dev/full")
    else:
        own, written = Path.write_bytes, []

        def write(self, data):
            written.append(self)
            if len(written) == 3:
                own(self, data[:5])
                raise OSError(28, "No space left on device")
            return own(self, data)

        monkeypatch.setattr(Path, "write_bytes", write)
    host = Here()
    with pytest.raises(OSError, match="No space left"):
        made(host, tmp_path)
    assert host.alive == 0
    assert not list(tmp_path.glob("*.partial*"))
    if full == "manifest":
        (tmp_path / "manifest.jsonl").unlink()
    monkeypatch.undo()
    found = made(Here(), tmp_path)
    assert len(found) == (5 if full == "manifest" else 3)
    whole(tmp_path)


def test_one_driver_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a\n")
    Path("clips").mkdir()
    for more in ([], ["--ray", "local"]):
        with alone("clips"):
            result = CliRunner().invoke(app, ["generate", "--prompts", "prompts.txt", "--out", "clips", *more])
        assert result.exit_code == 2
        said = [line for line in result.output.splitlines() if line.startswith("error:")]
        assert said == ["error: another process makes clips in clips: wait for it, or choose another folder"]
    assert list(Path("clips").iterdir()) == []


@pytest.mark.parametrize(("words", "says"), [
    (["a cat", "--ray", "local"], "is for --prompts"),
    (["--prompts", __file__, "--workers", "2"], "is for --ray"),
    (["--prompts", __file__, "--gpus-per-worker", "0.5"], "is for --ray"),
    (["--prompts", __file__, "--ray", "somewhere"], "give auto, local, HOST:PORT or ray://HOST:PORT"),
    (["--prompts", __file__, "--ray", "http://a:1"], "give auto, local, HOST:PORT or ray://HOST:PORT"),
    (["--prompts", __file__, "--ray", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1: [Errno 111]"),
    (["--prompts", __file__, "--ray", "local", "--workers", "0"], "greater than or equal to 1"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["generate", *words])
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())


def test_refining_is_one_search(tmp_path):
    words = ["calibrate", "forecast", "--ray", "local", "--refine", "1", "--out", str(tmp_path / "f.json")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "one search by one process" in " ".join(result.output.replace("│", " ").split())


def test_torchrun_and_ray_are_not_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["calibrate", "teacache", "--ray", "local", "--out", str(tmp_path / "t.json")])
    assert result.exit_code == 2
    assert "is not for torchrun" in result.output


# -- real pipelines: as in one process, bit for bit ------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tinywan"
    tiny.wan_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved):
    return Loaded(str(saved), None, CALL, "float32")


SETTINGS = {
    "teacache": {"retention": False},
    "mixcache": {"candidates": None},
    "lemica": {"reuse": "residual", "max_gap": 2, "compare": "latents", "tails": "exact", "stride": 2, "batch": 2,
               "min_budget": None},
    "forecast": {"bands": 1, "tails": 1, "tail_samples": 2, "trials": [0.5], "keep": "device", "first_order": False},
}  # fmt: skip
ONLY_THERE = {"teacache": {"of_small": False}, "lemica": {"slice": 0.0}, "forecast": {"metrics": [], "solver": None}}
STEPS = 6


def here(loaded, method, path):
    own = {} if method == "forecast" else {"seeds": [0]}
    call = {"num_inference_steps": STEPS, **loaded.call}
    return getattr(calibrate, f"calibrate_{method}")(loaded.pipe, REAL, path, call=call, **own, **SETTINGS[method])


def there(saved, method, path, host, count=2):
    options = {**SETTINGS[method], **ONLY_THERE.get(method, {})}
    setup = Setup(method, str(saved), STEPS, None, CALL, threads=torch.get_num_threads(), options=options)
    with crew(host, count, setup) as workers:
        workers.open(len(REAL))
        return record(workers, method, REAL, None if method == "forecast" else [0], path, options)


def but_for_times(data):
    """An artifact without what a clock says."""
    data = json.loads(json.dumps({name: value for name, value in data.items() if name not in ("times", "digest")}))
    for sample in data["samples"].values():
        for name in ("seconds", "seconds_recording"):
            sample.pop(name, None)
    return data


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_an_artifact_is_that_of_one_process(method, saved, loaded, tmp_path):
    """Two workers, which end in any order and are lost twice; then stopped, and gone on with by one process."""
    want = but_for_times(here(loaded, method, tmp_path / "one.json"))
    kept = [Worker() for _ in range(4)]  # loaded once
    pool = iter(kept)
    host = Here(lambda: next(pool), random.Random(3), lambda name, number: name == "work" and number in (2, 4))
    assert but_for_times(there(saved, method, tmp_path / "many.json", host)) == want

    def stopped(name, number):
        if name == "work" and number == 5:
            raise KeyboardInterrupt

    count, pool = (3 if method in ("teacache", "mixcache") else 5), iter(kept)
    host = Here(lambda: next(pool), random.Random(5), seen=lambda n, k: stopped(n, k + 5 - count))
    with pytest.raises(KeyboardInterrupt):
        there(saved, method, tmp_path / "stopped.json", host)
    before = json.loads((tmp_path / "stopped.json").read_text())["samples"]
    assert before
    assert but_for_times(here(loaded, method, tmp_path / "stopped.json")) == want


def test_an_artifact_is_protected_from_what_workers_send(saved, tmp_path):
    class Odd(Worker):
        def work(self, task):
            return messages.write(Reply(b'{"embedding": [1, "x"], "output": [2, 3]}'))

    with pytest.raises(CrewError, match="a worker sent no sample"):
        there(saved, "teacache", tmp_path / "t.json", Here(Odd), count=1)
    assert list(tmp_path.iterdir()) == []


def test_clips_and_their_fingerprint_are_those_of_one_process(saved, loaded, tmp_path):
    """By a method that reads a calibration, which the workers are sent: they need no file of the driver's."""
    here(loaded, "forecast", tmp_path / "forecast.json")
    chosen = parse_contender("Forecast(artifact='forecast.json', budget=3)", tmp_path)
    call = {**loaded.call, "num_inference_steps": STEPS}
    header = {**fingerprints.header("", loaded.pipe, call), "method": chosen.key, "fps": 12}
    with Making(loaded.pipe, chosen, call) as making:
        made_here(making, one := Manifest(tmp_path / "one", header), jobs_of(REAL))
    told, attached = options_of(chosen, fps=12, measure=False, compile=False)
    (tmp_path / "forecast.json").unlink()
    setup = Setup("clips", str(saved), STEPS, None, CALL, threads=torch.get_num_threads(), options=told, files=attached)
    with crew(Here(Worker), 1, setup) as workers:
        assert workers.open(3).fingerprint == one.fingerprint
        make_all(workers, many := Manifest(tmp_path / "many", one.fingerprint), jobs_of(REAL), chosen.label)
    told = [[{**line, "seconds": 0, "notes": 0} for line in lines(m.folder)] for m in (one, many)]
    assert told[0] == told[1]
    for job in jobs_of(REAL):
        assert (one.folder / one.name(job)).read_bytes() == (many.folder / many.name(job)).read_bytes()


def test_addresses():
    for good in ("auto", "local", "10.0.0.1:6379", "head.cluster:6379", "ray://head:10001", "[::1]:6379"):
        assert actors.check_address(good) == good
    for bad in ("", "head", "ray://", "http://x:1", "a b:1", "x:123456", "x:1\n"):
        with pytest.raises(ValueError, match="is no address"):
            actors.check_address(bad)
