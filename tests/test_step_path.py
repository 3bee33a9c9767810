"""What lies on the path of a step: no value is asked of the device where the action is known, and no buffer is made."""

from __future__ import annotations

import contextlib
import sys
import weakref

import pytest
import tiny
import torch

import vaccel
from vaccel.cache.buffers import Buffers
from vaccel.engine.run import Run

ASKS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")


@pytest.fixture
def asked(monkeypatch):
    """(step, method) of every question that is asked while the engine has a call in hand."""
    found, now = [], []
    original = Run.call

    def call(self, index, *given):
        now.append(index)
        try:
            return original(self, index, *given)
        finally:
            now.pop()

    def watching(name, method):
        def ask(tensor, *args, **kwargs):
            if now:
                found.append((now[-1], name))
            return method(tensor, *args, **kwargs)

        return ask

    monkeypatch.setattr(Run, "call", call)
    for name in ASKS:
        monkeypatch.setattr(torch.Tensor, name, watching(name, getattr(torch.Tensor, name)))
    return found


@pytest.mark.parametrize(
    "method",
    [
        vaccel.Schedule([0, 1, 2, 6, 10, 19], num_steps=20),
        vaccel.Schedule([0, 1, 2, 6, 10, 19], num_steps=20, reuse="residual"),
        vaccel.Schedule.from_timeline("FFFFFFmmmmFmmmmmmsss"),
        vaccel.TeaCache(threshold=0.6, coefficients=(1.0, 0.0)),
        vaccel.Forecast((0, 1, 2, 6, 10, 19), 20),
    ],
    ids=["blocks", "residual", "mixed", "teacache", "forecast"],
)
def test_where_the_action_is_known_nothing_is_asked(method, wan, small, asked):
    with vaccel.accelerate(wan, method, small=small if method.needs_small else None):
        tiny.latents(wan, steps=20)
    assert {step for step, _ in asked} <= {0}, "TeaCache reads its whole table at the first step"


def test_an_adaptive_method_asks_once_a_step(wan, small, asked):
    with vaccel.accelerate(wan, vaccel.DirectionMagnitude(threshold=0.005), small=small) as handle:
        tiny.latents(wan, steps=20)
        rescaled = [step.index for step in handle.trace.steps if step.action.letter == "m"]
    assert [step for step, _ in asked] == rescaled, "E, once after every substituted step"


def test_a_second_run_makes_no_buffer(wan, small, skipping_methods, monkeypatch):
    made = []
    empty = Buffers.empty

    def counting(self, key, *args):
        before = self._tensors.get(key)
        t = empty(self, key, *args)
        if t is not before:
            made.append(key)
        return t

    monkeypatch.setattr(Buffers, "empty", counting)
    for method in skipping_methods:
        with vaccel.accelerate(wan, method, small=small if method.needs_small else None):
            tiny.latents(wan, steps=20)
            made.clear()
            tiny.latents(wan, steps=20, seed=1)
            assert made == [], method


@pytest.mark.parametrize(
    "method", [vaccel.Forecast.prior(8), vaccel.Forecast((0, 5, 9, 13, 19), 20)], ids=lambda m: m.id
)
def test_velocities_have_their_buffers_before_they_are_computed(method, wan, monkeypatch):
    made, empty, now = [], Buffers.empty, []
    original = Run.call
    monkeypatch.setattr(Run, "call", lambda self, index, *given: (now.append(index), original(self, index, *given))[1])
    monkeypatch.setattr(
        Buffers, "empty", lambda self, key, *args: (made.append((now[-1], key)), empty(self, key, *args))[1]
    )
    with vaccel.accelerate(wan, method):
        tiny.latents(wan, steps=20)
    velocities = [step for step, key in made if key[0] == "large.velocities"]
    assert len(velocities) >= 4
    assert set(velocities) == {0}


@pytest.mark.parametrize("timeline", ["FFFFrrrF", "FFFFoooF", "FFFFpppF", "FFFFgggF", "FFFFFFFF"])
@pytest.mark.parametrize("reuse", ["blocks", "residual"])
def test_what_a_step_was_given_is_not_held_beyond_it(timeline, reuse, wan):
    """An old step's latents are the loop's: where it lets them go, their memory is free for the next step's."""
    held = []
    with vaccel.accelerate(wan, vaccel.Schedule.from_timeline(timeline, reuse=reuse)) as handle, torch.no_grad():
        wan.scheduler.set_timesteps(8)
        with handle.run(8):
            for i, t in enumerate(wan.scheduler.timesteps):
                x = torch.zeros(1, 16, 3, 4, 4)
                given = {"hidden_states": x, "timestep": t.expand(1), "encoder_hidden_states": torch.zeros(1, 8, 32)}
                for _ in range(2):
                    wan.transformer(**given, return_dict=False)
                ref = weakref.ref(x)
                del x, given
                if ref() is not None:
                    held.append(i)
    assert held == [0], "the first step may have more calls than it has made"


def test_latents_of_a_step_that_is_over_are_refused(wan, monkeypatch):
    original, seen = Run.call, []

    def call(self, index, *given):
        output = original(self, index, *given)
        if self.calls == 1:
            assert self.step.latents.shape == (1, 16, 3, 4, 4)
        elif 0 < index < 3:
            with pytest.raises(RuntimeError, match="the step is over; keep a copy in `decide`"):
                _ = self.step.latents
            seen.append(index)
        return output

    monkeypatch.setattr(Run, "call", call)
    with vaccel.accelerate(wan, vaccel.Schedule([0, 2], num_steps=4)):
        tiny.latents(wan, steps=4)
    assert seen == [1, 2]


@pytest.mark.gpu
def test_on_a_gpu_no_step_of_known_action_synchronises(skipping_methods):
    pipe = tiny.wan_pipeline().to("cuda")
    original = Run.call

    def call(self, index, *given):
        with contextlib.ExitStack() as stack:
            if index > 0:
                torch.cuda.set_sync_debug_mode("error")
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
            return original(self, index, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "call", call)
        for method in skipping_methods:
            if method.adaptive and method.id != "teacache":
                continue
            with vaccel.accelerate(pipe, method):
                tiny.latents(pipe, steps=20)
                tiny.latents(pipe, steps=20)


#: Timeline by action: the frame count is taken at the last but one step.
SKIPPED = {
    "residual of the blocks": ("FFFFrrrF", "blocks", 12), "residual of the output": ("FFFFrrrF", "residual", 12),
    "output": ("FFFFoooF", "blocks", 12), "forecast": ("FFFFpppF", "blocks", 12),
    "guidance": ("FFFFgggF", "blocks", 12),
    "resume": ("FFFFbbbF", "blocks", 18), "rescale": ("FFFFmmmF", "blocks", 12), "small": ("FFFFsssF", "blocks", 12),
}  # fmt: skip


@pytest.mark.parametrize("name", SKIPPED)
def test_a_skipped_step_passes_through_few_python_frames(name, wan, small):
    """From the transformer's call to the operator: what every step of every video pays."""
    timeline, reuse, most = SKIPPED[name]
    method = vaccel.Schedule.from_timeline(timeline, reuse=reuse)
    frames: list[str] = []

    def profile(frame, event, argument):
        if event == "call" and "/vaccel/" in frame.f_code.co_filename:
            frames.append(frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else frame.f_code.co_name)

    with vaccel.accelerate(wan, method, small=small if method.needs_small else None) as handle, torch.no_grad():
        wan.scheduler.set_timesteps(8)
        x = torch.zeros(1, 16, 3, 4, 4)
        with handle.run(8) as run:
            for i, t in enumerate(wan.scheduler.timesteps):
                frames.clear()
                given = {"hidden_states": x, "timestep": t.expand(1), "encoder_hidden_states": torch.zeros(1, 8, 32)}
                sys.setprofile(profile if i == 6 else None)
                try:
                    wan.transformer(**given, return_dict=False)
                finally:
                    sys.setprofile(None)
                if i == 6:
                    counted = list(frames)
                wan.transformer(**given, return_dict=False)  # the other branch
        assert run.trace.timeline() == timeline
    assert len(counted) <= most, " ".join(counted)
