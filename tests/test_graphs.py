"""Captured step functions; without a GPU they are rehearsed."""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from rehearsal import Rehearsal

import vaccel
from vaccel.engine import graphs
from vaccel.engine.graphs import Captures


@pytest.fixture
def rehearsal(monkeypatch):
    backend = Rehearsal()
    monkeypatch.setattr(graphs, "backend", lambda: backend)
    return backend


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_replayed_steps_are_the_eager_ones(name, rehearsal, skipping_methods):
    pipe, small = tiny.family(name)
    for method in skipping_methods:
        given = {"small": small if method.needs_small else None}
        with vaccel.accelerate(pipe, method, **given) as handle:
            eager = [tiny.latents(pipe, steps=20, seed=seed) for seed in (0, 1)]
            timelines = [trace.timeline() for trace in handle.traces]
        rehearsal.captured = rehearsal.replayed = 0
        with vaccel.accelerate(pipe, method, cuda_graphs=True, **given) as handle:
            for seed in (0, 1):
                assert torch.equal(tiny.latents(pipe, steps=20, seed=seed), eager[seed]), method
            assert [trace.timeline() for trace in handle.traces] == timelines
            assert handle.refused == []
        # One an action, branch and model; every computed step of both prompts replays one, but for the first two (which
        # makes a store's buffers, and which may come only once) of each branch.
        assert 0 < rehearsal.captured <= 8
        assert rehearsal.replayed >= 2 * timelines[0].count("F") - 4


def test_a_new_shape_is_captured_anew_and_the_old_one_again(wan, rehearsal):
    method = vaccel.Schedule([0, 1, 4, 8], num_steps=12)
    with vaccel.accelerate(wan, method):
        eager = [tiny.latents(wan, height=height) for height in (32, 48, 32)]
    with vaccel.accelerate(wan, method, cuda_graphs=True):
        for height, expected in zip((32, 48, 32), eager, strict=True):
            assert torch.equal(tiny.latents(wan, height=height), expected)


def test_other_weights_are_captured_anew(wan, rehearsal):
    with vaccel.accelerate(wan, vaccel.Schedule(range(12), num_steps=12), cuda_graphs=True):
        first = tiny.latents(wan)
        captured = rehearsal.captured
        tiny.latents(wan, seed=1)
        assert rehearsal.captured == captured
        wan.transformer.load_state_dict(tiny.wan_transformer(5).state_dict(), assign=True)
        other = tiny.latents(wan)
        assert rehearsal.captured == 2 * captured
    assert not torch.equal(first, other)
    assert torch.equal(tiny.latents(wan), other)


def lora(pipe, seed=0):
    """A LoRA on every attention of the transformer, its weights random."""
    from peft import LoraConfig

    torch.manual_seed(seed)
    pipe.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k"], init_lora_weights=False)
    )


def test_with_a_lora(wan, rehearsal):
    plain = tiny.latents(wan)
    lora(wan)
    method = vaccel.Schedule([0, 1, 4, 8], num_steps=12)
    with vaccel.accelerate(wan, method):
        eager = tiny.latents(wan)
    with vaccel.accelerate(wan, method, cuda_graphs=True) as handle:
        assert torch.equal(tiny.latents(wan), eager)
        captured = rehearsal.captured
        wan.transformer.set_adapters(["default"], [0.5])
        weaker = tiny.latents(wan)
        assert rehearsal.captured == 2 * captured > 0, "a scale is a constant of what was captured"
        wan.transformer.disable_adapters()
        without = tiny.latents(wan)
        assert handle.refused == []
    assert not torch.equal(eager, weaker)
    with vaccel.accelerate(wan, method):
        assert torch.equal(tiny.latents(wan), without)
        wan.transformer.enable_adapters()
        assert torch.equal(tiny.latents(wan), weaker)
    wan.transformer.delete_adapters("default")
    assert torch.equal(tiny.latents(wan), plain)


def test_what_cannot_be_captured_runs_without_and_says_so_once(wan, rehearsal):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    plain = tiny.latents(wan)
    add_hook_to_module(wan.transformer.blocks[0], ModelHook())
    with vaccel.accelerate(wan, vaccel.Schedule(range(12), num_steps=12), cuda_graphs=True) as handle:
        with pytest.warns(UserWarning, match="without CUDA graphs: accelerate's offload"):
            first = tiny.latents(wan)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert torch.equal(tiny.latents(wan), first)
        assert torch.equal(first, plain)
        assert handle.refused == ["accelerate's offload moves its weights"]
        assert rehearsal.captured == 0
        remove_hook_from_module(wan.transformer.blocks[0])
        assert torch.equal(tiny.latents(wan), plain)
        assert rehearsal.captured > 0, "the reason is gone"


def test_a_failed_capture_leaves_the_eager_path(wan, rehearsal, monkeypatch):
    def fail(function):
        rehearsal.captured += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    plain = tiny.latents(wan)
    monkeypatch.setattr(rehearsal, "capture", fail)
    with vaccel.accelerate(wan, vaccel.Schedule(range(12), num_steps=12), cuda_graphs=True) as handle:
        with pytest.warns(UserWarning, match="capturing failed: operation not permitted"):
            first = tiny.latents(wan)
        assert torch.equal(first, plain)
        assert torch.equal(tiny.latents(wan), plain)
        assert handle.refused == ["capturing failed: operation not permitted when stream is capturing"]
    assert rehearsal.captured == 1, "tried once, not at every step"


def double(captures, size):
    """The same kind of call for every size."""
    x = torch.randn(size)
    assert torch.equal(captures("double", lambda x: 2 * x, x), 2 * x)


def test_what_comes_once_is_never_captured(rehearsal):
    captures = Captures(rehearsal)
    captures.begin(0)
    for size in range(1, 20):
        double(captures, size)
    assert rehearsal.captured == rehearsal.warmups == 0
    double(captures, 3)
    assert (rehearsal.captured, rehearsal.replayed) == (1, 1)
    for constant in range(3000):  # a number that is another one at every call
        captures("constant", lambda given: given["x"] + given["c"], {"x": torch.ones(1), "c": constant})
    assert rehearsal.captured == 1
    assert len(captures._known) <= 8 * captures.limit, "nor remembered for good"


def test_the_one_unused_for_longest_goes_and_stays_away(rehearsal):
    captures, notes = Captures(rehearsal, limit=2), []
    captures.begin(0)
    captures.tell(notes)
    for size in (1, 1, 2, 2, 1, 3, 3):
        double(captures, size)
    assert len(captures) == 2
    assert rehearsal.captured == 3
    replayed = rehearsal.replayed
    double(captures, 1)
    double(captures, 3)
    assert rehearsal.replayed == replayed + 2, "it was the second that went"
    with pytest.warns(UserWarning, match="more than 2 kinds of calls take turns"):
        double(captures, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for size in (2, 1, 4, 4, 4, 2, 3):
            double(captures, size)
    assert rehearsal.captured == 3
    assert captures.refused == ["more than 2 kinds of calls take turns: no others are captured"]
    (note,) = notes
    assert note.startswith("CUDA graphs: 3 captured in ")
    assert note.endswith("; no room for other kinds of calls beside 2")
    captures.begin(1)
    for size in (2, 2, 4, 4):
        double(captures, size)
    assert rehearsal.captured == 5, "another state begins anew"


@given(st.lists(st.integers(1, 9), max_size=80), st.integers(1, 5))
def test_no_order_of_calls_captures_a_kind_twice(sizes, limit):
    rehearsal = Rehearsal()
    captures = Captures(rehearsal, limit=limit)
    captures.begin(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for size in sizes:
            double(captures, size)
    assert len(captures) <= limit
    assert rehearsal.captured <= sum(sizes.count(size) > 1 for size in set(sizes))


def test_results_are_the_callers_own(rehearsal):
    captures = Captures(rehearsal)
    captures.begin(0)

    def call(function, x, more):
        return captures("k", function, {"x": x, "more": more})

    def sums(given):
        return given["x"] + given["more"], given["x"] * 2

    call(sums, torch.zeros(2), 1)
    first, second = call(sums, torch.ones(2), 1), call(lambda given: None, torch.zeros(2), 1)
    other = [call(lambda given: given["x"] + given["more"], torch.zeros(2), more) for more in (5, True, 1.0)]
    assert [t.tolist() for t in first] == [[2, 2], [2, 2]]
    assert [t.tolist() for t in second] == [[1, 1], [0, 0]]
    assert [t.tolist() for t in other] == [[5, 5], [1, 1], [1, 1]], "a constant is part of what was captured"


def broken(rehearsal, monkeypatch, where):
    """Captures that fail: in the function, where they end, or when they are first replayed."""
    plainly = rehearsal.capture

    def capture(function):
        replay, outputs = plainly(function)
        if where == "capture":
            raise RuntimeError("operation failed due to a previous error during capture")

        def fails():
            replay()
            raise RuntimeError("out of memory")

        return fails, outputs

    monkeypatch.setattr(rehearsal, "capture", capture)


@pytest.mark.parametrize("where", ["function", "memory", "capture", "replay"])
def test_what_fails_runs_on_with_buffers_as_they_were(where, rehearsal, monkeypatch):
    captures, buffer, notes = Captures(rehearsal), torch.zeros(1), []
    captures.begin(0)
    captures.tell(notes)
    if where in ("capture", "replay"):
        broken(rehearsal, monkeypatch, where)

    def counts(x):
        buffer.add_(1)
        if where == "function":
            buffer.item()
        return x + buffer

    class Large(torch.Tensor):
        def clone(self):
            raise torch.OutOfMemoryError("CUDA out of memory")

    overwritten = [buffer, *[torch.zeros(1).as_subclass(Large)] * (where == "memory")]
    assert captures("k", counts, torch.zeros(1), overwritten).item() == 1
    with pytest.warns(UserWarning, match="running without CUDA graphs: "):
        assert captures("k", counts, torch.zeros(1), overwritten).item() == 2
    assert captures("k", counts, torch.zeros(1), overwritten).item() == buffer.item() == 3
    assert len(captures) == captures.nbytes == rehearsal.nbytes == 0
    (note,) = notes
    assert [note] == [f"no CUDA graphs: {reason}" for reason in captures.refused]


def test_an_interrupted_capture_leaves_buffers_as_they_were(rehearsal):
    captures, buffer = Captures(rehearsal), torch.zeros(1)
    captures.begin(0)

    def interrupted(x):
        buffer.add_(1)
        if buffer.item() > 1:
            raise KeyboardInterrupt
        return x + buffer

    captures("k", interrupted, torch.zeros(1), [buffer])
    with pytest.raises(KeyboardInterrupt):
        captures("k", interrupted, torch.zeros(1), [buffer])
    assert buffer.item() == 1


def test_a_capture_draws_no_random_numbers(rehearsal):
    captures = Captures(rehearsal)
    captures.begin(0)
    states = []
    for _ in range(2):
        captures("k", lambda x: x + torch.rand(1), torch.zeros(1))
        states.append(torch.get_rng_state())
    torch.manual_seed(0)
    expected = [torch.rand(1) for _ in range(4)]
    torch.manual_seed(0)
    captures = Captures(rehearsal)
    captures.begin(0)
    found = [captures("k", lambda x: x + torch.rand(1), torch.zeros(1)) for _ in range(4)]
    assert found == expected


def test_settings_of_the_process_belong_to_what_was_captured(rehearsal):
    captures = Captures(rehearsal)
    for precision in ("highest", "high", "highest"):
        torch.set_float32_matmul_precision(precision)
        captures.begin(0)
        double(captures, 1)
        double(captures, 1)
    assert rehearsal.captured == 3
    with torch.autocast("cpu"):
        captures.begin(0)
        double(captures, 1)
    assert len(captures) == 0


def test_what_is_held_is_counted_and_given_back(wan, rehearsal):
    method = vaccel.Schedule(range(12), num_steps=12)
    with vaccel.accelerate(wan, method, cuda_graphs=False) as handle:
        tiny.latents(wan)
        plain = handle.nbytes
    handle = vaccel.accelerate(wan, method, cuda_graphs=True)
    tiny.latents(wan)
    captures = handle._session.pool.idle[0].captures
    inputs = sum(t.numel() * t.element_size() for c in captures._captured.values() for t in c.inputs)
    assert rehearsal.nbytes > 0 < inputs
    assert handle.nbytes == plain + inputs + rehearsal.nbytes
    (note,) = [note for note in handle.trace.notes if "CUDA graphs" in note]
    assert note.startswith(f"CUDA graphs: {rehearsal.captured} captured in ")
    assert f"with 1 warm-up forward, {(inputs + rehearsal.nbytes) / 1e6:.3g} MB held" in note
    assert handle.trace.calls == {"large": 24, "small": 0}, "warming up is no step's forward"
    tiny.latents(wan)
    assert not any("CUDA graphs" in note for note in handle.trace.notes), "nothing new was captured"
    handle.remove()
    assert captures.nbytes == rehearsal.nbytes == len(captures) == 0


def test_without_a_gpu_graphs_are_refused(wan, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="cuda_graphs=True needs a CUDA device"):
        vaccel.accelerate(wan, vaccel.Schedule([0], num_steps=12), cuda_graphs=True)
    with vaccel.accelerate(wan, vaccel.Schedule([0], num_steps=12)):
        pass


@pytest.mark.gpu
def test_on_a_gpu(skipping_methods):
    pipe, small = tiny.wan_pipeline().to("cuda"), tiny.wan_small().to("cuda")
    for method in skipping_methods:
        given = {"small": small if method.needs_small else None}
        with vaccel.accelerate(pipe, method, cuda_graphs=False, **given) as handle:
            eager, timeline = tiny.latents(pipe, steps=20), None
            timeline = handle.trace.timeline()
        with vaccel.accelerate(pipe, method, cuda_graphs=True, **given) as handle:
            for _ in range(2):
                assert torch.allclose(tiny.latents(pipe, steps=20), eager, rtol=1e-5, atol=1e-6), method
                assert handle.trace.timeline() == timeline
            assert handle.refused == []
