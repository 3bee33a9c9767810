"""Captured step functions.  Without a GPU they are rehearsed: the operations of a step are recorded, and a replay runs
those alone, from the tensors they were recorded with into the same results.  As in a CUDA graph, no Python of the step
runs again and nothing moves."""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vaccel
from vaccel.engine import graphs
from vaccel.engine.graphs import Captures


class Recording(TorchDispatchMode):
    """Every operation that runs, with what it was given and what came of it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value is read on the host, where a stream that is captured has none yet")
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, tree_leaves(result)))
        return result

    def replay(self):
        for function, args, kwargs, kept in self.calls:
            for old, new in zip(kept, tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


class Rehearsal:
    """A backend for CPU tensors; counts what it captures."""

    device = "cpu"

    def __init__(self):
        self.captured = self.replayed = 0

    def capture(self, function):
        self.captured += 1
        with Recording() as recording:
            outputs = function()

        def replay():
            self.replayed += 1
            recording.replay()

        return replay, outputs


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
        # One an action, branch and model; every computed step of both prompts replays one.
        assert 0 < rehearsal.captured <= 8
        assert rehearsal.replayed >= 2 * timelines[0].count("F")


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


def test_the_number_of_captures_is_bounded(rehearsal):
    captures = Captures(rehearsal, limit=2)
    captures.begin(0)
    for size in (1, 2, 3):
        assert torch.equal(captures("double", lambda x: 2 * x, torch.ones(size)), torch.full((size,), 2.0))
    assert len(captures) == 2
    captures("double", lambda x: 2 * x, torch.ones(3))
    assert rehearsal.captured == 3
    captures("double", lambda x: 2 * x, torch.ones(1))
    assert rehearsal.captured == 4, "the one unused for longest went"


def test_results_are_the_callers_own(rehearsal):
    captures = Captures(rehearsal)
    captures.begin(0)
    first = captures(
        "k", lambda inputs: (inputs["x"] + inputs["more"], inputs["x"] * 2), {"x": torch.ones(2), "more": 1}
    )
    second = captures("k", lambda given: None, {"x": torch.zeros(2), "more": 1})
    other = captures("k", lambda given: given["x"] + given["more"], {"x": torch.zeros(2), "more": 5})
    assert [t.tolist() for t in first] == [[2, 2], [2, 2]]
    assert [t.tolist() for t in second] == [[1, 1], [0, 0]]
    assert other.tolist() == [5, 5], "a constant is part of what was captured"


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
        with vaccel.accelerate(pipe, method, **given) as handle:
            eager, timeline = tiny.latents(pipe, steps=20), None
            timeline = handle.trace.timeline()
        with vaccel.accelerate(pipe, method, cuda_graphs=True, **given) as handle:
            for _ in range(2):
                assert torch.allclose(tiny.latents(pipe, steps=20), eager, rtol=1e-5, atol=1e-6), method
                assert handle.trace.timeline() == timeline
            assert handle.refused == []
