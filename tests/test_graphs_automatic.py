"""CUDA graphs that nobody asked for: only where they are certified, and only for steps that wait for their launches."""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch
from rehearsal import Rehearsal

import vaccel
from vaccel import capture
from vaccel.engine import graphs
from vaccel.engine.graphs import Captures
from vaccel.engine.launch_bound import LAUNCH_BOUND, CudaClock, Known
from vaccel.ops import certified
from vaccel.ops.certified import Table

CPU = torch.device("cpu")
ALL = vaccel.Schedule(range(12), num_steps=12)


class Clock:
    """Says that enqueueing takes ``share`` of the device's time, the device being late by some readings."""

    def __init__(self, share, late=0):
        self.share, self.late, self.measured = share, late, 0

    def begin(self):
        return "begun"

    def end(self, begun):
        assert begun == "begun"
        self.measured += 1
        return [self.late]

    def read(self, measured):
        measured[0] -= 1
        return (self.share * 2.0, 2.0) if measured[0] < 0 else None


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A machine whose CPU can capture and is certified for it; gives what sets how launch-bound it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(capture, "DEVICES", ("cuda", "cpu"))
    certified.save(CPU, Table([], [], {"passed": True, "why": ""}))
    rehearsal = Rehearsal()
    monkeypatch.setattr(graphs, "backend", lambda: rehearsal)

    def set_clock(share=1.0, late=0):
        clock = Clock(share, late)
        monkeypatch.setattr(graphs, "clock", lambda: clock)
        return rehearsal, clock

    return set_clock


@pytest.fixture
def wan():
    return tiny.wan_pipeline()


def notes(handle):
    return [note for note in handle.trace.notes if "CUDA graphs" in note]


def test_a_launch_bound_pipeline_is_captured(wan, here):
    rehearsal, clock = here(share=LAUNCH_BOUND)
    plain = [tiny.latents(wan, seed=seed) for seed in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with vaccel.accelerate(wan, ALL) as handle:
            assert torch.equal(tiny.latents(wan), plain[0])
            assert clock.measured == rehearsal.captured == 2, "once a branch"
            assert rehearsal.replayed == 2 * (12 - 2), "the first warms up, the second is measured"
            (note,) = notes(handle)
            assert note.startswith("CUDA graphs: 2 captured in ")
            assert handle.trace.calls == {"large": 24, "small": 0}
            assert torch.equal(tiny.latents(wan, seed=1), plain[1])
            assert clock.measured == rehearsal.captured == 2
            assert rehearsal.replayed == 2 * (12 - 2) + 24
            assert notes(handle) == [] == handle.refused


def test_one_that_is_not_launch_bound_is_left_alone(wan, here):
    rehearsal, clock = here(share=0.99 * LAUNCH_BOUND)
    plain = tiny.latents(wan)
    with vaccel.accelerate(wan, ALL) as handle:
        for _ in range(2):
            assert torch.equal(tiny.latents(wan), plain)
            (note,) = notes(handle)
            assert note.startswith("no CUDA graphs: enqueueing takes 0.79 in large of the device's time")
        assert clock.measured == 2
        assert rehearsal.captured == rehearsal.warmups == 0
        assert handle.refused == []


def test_each_model_is_measured_by_itself(here):
    """A small model waits for its launches where the large one beside it does not."""
    rehearsal, clock = here()
    pipe, small = tiny.family("wan")
    method = vaccel.SRDiffusion(threshold=1e9)  # after the first steps all are the small model's
    with vaccel.accelerate(pipe, method, small=small) as handle:
        plain, timeline = tiny.latents(pipe, steps=20), handle.trace.timeline()
    shares, unknown = {"large": 0.25, "small": 1.0, "rescale": 1.0}, Captures._unknown

    def told(self, asked):
        clock.share = shares[asked.name]
        return unknown(self, asked)

    rehearsal.captured = rehearsal.replayed = 0
    with pytest.MonkeyPatch.context() as patch, vaccel.accelerate(pipe, method, small=small) as handle:
        patch.setattr(Captures, "_unknown", told)
        assert torch.equal(tiny.latents(pipe, steps=20), plain)
        assert handle.trace.timeline() == timeline
        (note,) = notes(handle)
        assert rehearsal.captured == 2, "the small model's branches"
        assert "not all: enqueueing takes 0.25 in large of the device's time" in note


def test_the_device_is_never_waited_for(wan, here):
    """It is read at a later step, and as long as it has not got there steps are eager."""
    rehearsal, clock = here(late=4)
    plain = tiny.latents(wan)
    with vaccel.accelerate(wan, ALL):
        assert torch.equal(tiny.latents(wan), plain)
    assert clock.measured == 2, "and is measured no second time"
    assert rehearsal.replayed == 2 * (12 - 2 - 4)


def test_a_run_that_is_too_short_to_tell_says_so(wan, here):
    rehearsal, _ = here()
    with vaccel.accelerate(wan, vaccel.Schedule([0, 1], num_steps=2)) as handle:
        tiny.latents(wan, steps=2)
        (note,) = notes(handle)
        assert note.startswith("no CUDA graphs yet: ")
        tiny.latents(wan, steps=2)
        assert rehearsal.captured == 2, "what was measured in one run serves the next"


def test_why_not_is_one_line_of_the_trace_alone(wan, here, monkeypatch):
    rehearsal, _ = here()

    def said(table):
        if table is not None:
            certified.save(CPU, table)
            certified._table.cache_clear()
        with warnings.catch_warnings(), vaccel.accelerate(wan, ALL) as handle:
            warnings.simplefilter("error", UserWarning)
            tiny.latents(wan)
            assert handle.refused == []
            assert handle._session.pool.idle[0].captures is None
            return notes(handle)

    unproven = "no CUDA graphs: not certified on this device (vaccel doctor --certify)"
    assert said(Table([])) == [unproven]
    assert said(Table([], [], {"passed": False, "why": "3 of 3 replays differ"})) == [
        "no CUDA graphs: not right on this device: 3 of 3 replays differ"
    ]
    certified.save(CPU, Table([], [], {"passed": True}))
    monkeypatch.setenv("VACCEL_KERNELS", "torch")
    assert said(None) == ["no CUDA graphs: VACCEL_KERNELS=torch leaves them out"]
    monkeypatch.delenv("VACCEL_KERNELS")
    certified.path_of(CPU).unlink()
    assert said(None) == [unproven]
    monkeypatch.setattr(capture, "DEVICES", ("cuda",))
    assert said(None) == [], "where there is no GPU nobody expects them"
    assert rehearsal.captured == 0


def test_false_is_never_and_true_is_whatever_comes_twice(wan, here, monkeypatch):
    rehearsal, clock = here(share=0.1)
    with vaccel.accelerate(wan, ALL, cuda_graphs=False) as handle:
        tiny.latents(wan)
        assert notes(handle) == []
    monkeypatch.setenv("VACCEL_KERNELS", "torch")
    with vaccel.accelerate(wan, ALL, cuda_graphs=True) as handle:
        tiny.latents(wan)
        assert handle.refused == []
    assert clock.measured == 0
    assert rehearsal.captured == 2


def test_a_failed_capture_is_a_note_and_no_warning(wan, here, monkeypatch):
    rehearsal, _ = here()
    plain = tiny.latents(wan)

    def fail(function):
        rehearsal.captured += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(rehearsal, "capture", fail)
    with warnings.catch_warnings(), vaccel.accelerate(wan, ALL) as handle:
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):
            assert torch.equal(tiny.latents(wan), plain)
            reason = "capturing failed: operation not permitted when stream is capturing"
            assert notes(handle) == [f"no CUDA graphs: {reason}"]
        assert handle.refused == []
    assert rehearsal.captured == 1


def test_a_users_hook_is_called_at_every_step(wan, here):
    rehearsal, _ = here()
    called = []
    hook = wan.transformer.blocks[0].register_forward_hook(lambda *given: called.append(1))
    with vaccel.accelerate(wan, ALL) as handle:
        tiny.latents(wan)
        assert len(called) == 24
        assert rehearsal.captured == 0
        kind = type(wan.transformer.blocks[0]).__name__
        assert notes(handle) == [
            f"no CUDA graphs: a forward hook sits on a {kind}, and a captured step would not call it"
        ]
        hook.remove()
        tiny.latents(wan)
        assert rehearsal.captured == 2


def test_every_method_gives_eager_latents(here, skipping_methods):
    rehearsal, _ = here()
    pipe, small = tiny.family("wan")
    for method in skipping_methods:
        given = {"small": small if method.needs_small else None}
        with vaccel.accelerate(pipe, method, cuda_graphs=False, **given):
            eager = tiny.latents(pipe, steps=20)
        rehearsal.captured = 0
        with vaccel.accelerate(pipe, method, **given):
            assert torch.equal(tiny.latents(pipe, steps=20), eager), method
        assert rehearsal.captured > 0, method


def test_runs_at_once_have_backends_of_their_own(wan, here, monkeypatch):
    """Graphs of one backend share memory that two replays at once would both write to."""
    here()
    made = []
    monkeypatch.setattr(graphs, "backend", lambda: made.append(Rehearsal()) or made[-1])
    with vaccel.accelerate(wan, ALL) as handle:
        first, second = (handle._session.pool.take() for _ in range(2))
        captures = [handle._session.captures(workspace, CPU)[0] for workspace in (first, second, first)]
        assert captures[0] is captures[2] is not captures[1]
        assert captures[0].backend is not captures[1].backend
        assert len(made) == 2


# -- the clock of a GPU ------------------------------------------------------------------------------------------------


class Event:
    """The device passes events when the test says so."""

    def __init__(self, log, enable_timing):
        assert enable_timing
        self.log, self.passed = log, False

    def record(self):
        self.log.append("record")

    def query(self):
        self.log.append("query")
        return self.passed

    def elapsed_time(self, last):
        return 500.0  # milliseconds


@pytest.mark.parametrize(("seconds", "bound"), [(0.1, False), (0.39, False), (0.41, True), (0.6, True)])
def test_the_clock_reads_events_and_empties_the_queue_once(seconds, bound, monkeypatch):
    log, now = [], [10.0]

    class Stream:
        def synchronize(self):
            log.append("synchronize")

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(log, enable_timing))
    monkeypatch.setattr("vaccel.engine.launch_bound._now", lambda: now[0])

    def forward(x):
        log.append("forward")
        now[0] += seconds
        return x

    clock, known = CudaClock(), Known()
    assert not known.look(clock)
    assert known.timed(clock, forward, 1) == 1
    assert log == ["synchronize", "record", "forward", "record"]
    assert not known.look(clock)
    assert known.timed(clock, forward, 1) == 1
    assert log[4:] == ["query", "forward"]
    known._measured[1].passed = True
    assert known.look(clock)
    assert known.look(clock)
    assert log[6:] == ["query"]
    assert known.share == pytest.approx(seconds / 0.5)
    assert known.bound is bound


# -- on a GPU ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def certified_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = torch.device("cuda", 0)
    certified.save(device, Table([], [], {"passed": True, "why": ""}))
    return device


@pytest.mark.gpu
def test_a_tiny_model_on_a_gpu_is_launch_bound(certified_gpu):
    pipe = tiny.wan_pipeline().to(certified_gpu)
    with vaccel.accelerate(pipe, ALL, cuda_graphs=False) as handle:
        eager, plain = tiny.latents(pipe), handle.nbytes
    before = torch.cuda.get_rng_state()
    with vaccel.accelerate(pipe, ALL) as handle:
        for _ in range(2):
            assert torch.allclose(tiny.latents(pipe), eager, rtol=1e-5, atol=1e-6)
        assert notes(handle) == []
        (note,) = [note for note in handle.traces[0].notes if "CUDA graphs" in note]
        assert note.startswith("CUDA graphs: 2 captured in "), note
        assert handle.nbytes > plain
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.gpu
def test_a_large_forward_on_a_gpu_is_not_launch_bound():
    captures, found = Captures(graphs.backend(), clock=graphs.clock()), []
    captures.begin(0)
    captures.tell(found)
    x = torch.randn(8192, 8192, device="cuda")
    for _ in range(6):
        captures("large", lambda x: x @ x @ x @ x, x)
        torch.cuda.synchronize()
    assert len(captures) == 0
    (note,) = found
    assert note.startswith("no CUDA graphs: enqueueing takes 0.")


@pytest.mark.gpu
@pytest.mark.parametrize("fails", [lambda x: x.sum().item(), lambda x: torch.cuda.synchronize()])
def test_after_a_failed_capture_a_gpu_goes_on(fails):
    """Streams capture nothing, noise can be drawn, memory can be had and freed, and another capture succeeds."""
    captures, x = Captures(graphs.backend()), torch.randn(1000, device="cuda")
    captures.begin(0)

    def function(x):
        fails(x)
        return x * 2

    stream = torch.cuda.current_stream()
    assert torch.equal(captures("k", function, x), x * 2)
    with pytest.warns(UserWarning, match="capturing failed"):
        assert torch.equal(captures("k", function, x), x * 2)
    assert torch.cuda.current_stream() == stream
    assert not torch.cuda.is_current_stream_capturing()
    torch.randn(1000, device="cuda")
    torch.cuda.empty_cache()
    captures.begin(1)
    for _ in range(3):
        assert torch.equal(captures("k", lambda x: x * 2, x), x * 2)
    assert len(captures) == 1
    assert captures.nbytes > x.numel() * 4
    captures.clear()
    assert captures.nbytes == 0


@pytest.mark.gpu
def test_another_thread_allocates_while_a_gpu_captures():
    import threading

    captures, x, stop = Captures(graphs.backend()), torch.randn(100, device="cuda"), threading.Event()
    captures.begin(0)

    def allocates():  # sizes that the allocator has to ask the driver for
        kept = []
        while not stop.is_set():
            kept = [*kept[-63:], torch.empty(2**24 + 2**21 * len(kept), device="cuda")]

    thread = threading.Thread(target=allocates)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            for key in range(8):
                for _ in range(3):
                    assert torch.equal(captures(key, lambda x: torch.tanh(x) * 2, x), torch.tanh(x) * 2)
    finally:
        stop.set()
        thread.join()
    assert len(captures) == 8


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu_captures_and_replays_on_itself():
    captures = Captures(graphs.backend())
    captures.begin(0)
    for _ in range(3):
        for index in (0, 1):
            x = torch.randn(100, device=f"cuda:{index}")
            assert torch.equal(captures("k", lambda x: torch.tanh(x) * 2, x), torch.tanh(x) * 2)
    assert len(captures) == 2
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
def test_a_gpu_certifies_its_graphs():
    from vaccel.proving import graphs_measured

    found = graphs_measured(torch.device("cuda"), "norm", "torch", "65536")
    assert found["passed"], found
    assert found["replay_us"] < found["launch_us"]
