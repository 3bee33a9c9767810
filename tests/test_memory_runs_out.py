"""Memory that runs out while something is cached: the rest of the run is computed in full, and says so."""

from __future__ import annotations

import pytest
import tiny
import torch

import vaccel
from vaccel.cache import Buffers

STEPS = 8
METHODS = {
    "blocks": (vaccel.LeMiCa((0, 2, 4, 7), STEPS), False),
    "outputs": (vaccel.Schedule(range(0, STEPS, 2), num_steps=STEPS, reuse="output"), False),
    "forecast": (vaccel.Schedule(range(0, STEPS, 2), num_steps=STEPS, reuse="forecast"), False),
    "resume": (vaccel.Schedule.from_timeline("FFbFbFbF"), False),
    "small": (vaccel.DirectionMagnitude(threshold=1e6, first=0.3, last=0.9), True),
    "EasyCache": (vaccel.EasyCache(threshold=1e6, warmup=2), False),
}
SAID = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def full_at(monkeypatch):
    """Makes the allocation of that number fail, counted from 0 on, and all after it."""

    def fail(number: int, error: type[Exception] = torch.OutOfMemoryError, said: str = SAID) -> list[int]:
        own, count = Buffers.empty, []

        def empty(self, key, shape, dtype, device):
            known = self._tensors.get(key)
            if known is None or known.shape != torch.Size(shape):
                count.append(1)
                if len(count) > number:
                    raise error(said)
            return own(self, key, shape, dtype, device)

        monkeypatch.setattr(Buffers, "empty", empty)
        return count

    return fail


@pytest.mark.parametrize("name", METHODS)
def test_at_the_first_step(name, full_at):
    method, needs_small = METHODS[name]
    pipe = tiny.wan_pipeline()
    plain = tiny.latents(pipe, steps=STEPS)
    count = full_at(0)
    handle = vaccel.accelerate(pipe, method, small=tiny.wan_small() if needs_small else None)
    with pytest.warns(UserWarning, match=r"no memory for the caches at step \d .*; computed in full"):
        made = tiny.latents(pipe, steps=STEPS)
    assert count, "something was to be cached"
    assert torch.equal(made, plain)
    assert handle.nbytes == 0
    assert SAID in handle.trace.notes[-1]
    assert not handle.trace.finished
    assert torch.equal(tiny.latents(pipe, steps=STEPS), plain), "said once, and computed again"


@pytest.mark.parametrize("number", [1, 2])
def test_in_the_middle(number, full_at, monkeypatch):
    pipe = tiny.wan_pipeline()
    handle, told = vaccel.accelerate(pipe, METHODS["resume"][0]), []
    handle.on_run(told.append)
    right = tiny.latents(pipe, steps=STEPS)
    handle.remove()
    handle = vaccel.accelerate(pipe, METHODS["resume"][0])
    handle.on_run(told.append)
    full_at(number)
    with pytest.warns(UserWarning, match="no memory for the caches"):
        made = tiny.latents(pipe, steps=STEPS)
    assert torch.isfinite(made).all()
    assert sum(told[-1].fallbacks.values()) >= 1
    monkeypatch.undo()
    assert torch.equal(tiny.latents(pipe, steps=STEPS), right), "with memory it caches again"
    assert handle.trace.finished


def test_on_the_host_too(full_at):
    pipe = tiny.wan_pipeline()
    plain = tiny.latents(pipe, steps=STEPS)
    full_at(0, RuntimeError, "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 64 bytes")
    vaccel.accelerate(pipe, METHODS["outputs"][0])
    with pytest.warns(UserWarning, match="can't allocate memory"):
        assert torch.equal(tiny.latents(pipe, steps=STEPS), plain)


def test_other_errors_are_left_as_they_are(full_at):
    pipe = tiny.wan_pipeline()
    full_at(0, RuntimeError, "an illegal instruction")
    vaccel.accelerate(pipe, METHODS["outputs"][0])
    with pytest.raises(RuntimeError, match="an illegal instruction"):
        tiny.latents(pipe, steps=STEPS)


def test_a_model_that_does_not_fit_says_so():
    pipe = tiny.wan_pipeline()
    vaccel.accelerate(pipe, METHODS["outputs"][0])

    def fails(module, args):
        raise torch.OutOfMemoryError(SAID)

    hook = pipe.transformer.blocks[0].register_forward_pre_hook(fails)
    with pytest.warns(UserWarning, match="no memory"), pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
        tiny.latents(pipe, steps=STEPS)
    hook.remove()
    assert torch.isfinite(tiny.latents(pipe, steps=STEPS)).all()
