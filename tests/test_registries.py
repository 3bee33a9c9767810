"""Every action, store, signal, method and family: what is registered is tried, so that nothing escapes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny
import torch
from made_experts import make, pipeline

import vaccel
from vaccel import actions, cache, signals
from vaccel.actions import ACTIONS, Full
from vaccel.cache import STORES, Store
from vaccel.methods import Method, Policy
from vaccel.methods.base import _METHODS
from vaccel.models import FAMILIES, Family
from vaccel.signals import SIGNALS

STEPS = 12
#: What stands at the third step and the last but one, in a run that has computed the others; "s" before what needs it.
TIMELINES = {
    "F": "F" * STEPS, "s": "FFsFFFFFFFsF", "m": "FFmFFFFFFFmF", "r": "FFrFFFFFFFrF", "o": "FFoFFFFFFFoF",
    "g": "FFgFFFFFFFgF", "b": "FFbFFFFFFFbF", "p": "FFpFFFFFFFpF",
}  # fmt: skip
#: A method that leaves each kind of store behind.
STORING = {
    "blocks": vaccel.Schedule.from_timeline("FFrF"), "output": vaccel.Schedule.from_timeline("FFrF", reuse="residual"),
    "last": vaccel.Schedule.from_timeline("FFoF"), "delta": vaccel.Schedule.from_timeline("FFgF"),
    "states": vaccel.Schedule.from_timeline("FFbF"), "velocities": vaccel.Schedule.from_timeline("FFpF"),
}  # fmt: skip
#: One of each method that can be made without an artifact.
METHODS = {
    "direction_magnitude": vaccel.DirectionMagnitude(0.05), "srdiffusion": vaccel.SRDiffusion(0.5),
    "teacache": vaccel.TeaCache(0.6, (1.0, 0.0)), "schedule": vaccel.Schedule(range(0, STEPS, 3), num_steps=STEPS),
    "lemica": vaccel.LeMiCa((0, 3, 6, 11), STEPS),
    "mixcache": vaccel.MixCache(theta=1.0, d1=0.3, d2=0.6, cfg_impact=0.1),
    "forecast": vaccel.Forecast((0, 1, 4, 8, 11), STEPS), "easycache": vaccel.EasyCache(0.3, 3),
    "recording": vaccel.methods.Recording(), "auto": None, "dcm": None,  # have tests of their own
}  # fmt: skip


def families():
    return [name for name in FAMILIES if name in ("wan", "cogvideox", "qwen-image")]


@pytest.mark.parametrize("letter", ACTIONS)
def test_every_action(letter, tmp_path):
    kind = ACTIONS[letter]
    assert actions.from_json(kind().to_json()) == kind()
    assert kind.letter == letter
    if letter == "e":
        pipe = pipeline("wan")
        with vaccel.accelerate(pipe, vaccel.DualExpert(make(tmp_path, "wan"))) as handle:
            tiny.latents(pipe, steps=4)
            assert handle.trace.timeline() == "eeee"
        return
    for name in families():
        pipe, small = tiny.family(name)
        method = vaccel.Schedule.from_timeline(TIMELINES[letter])
        with vaccel.accelerate(pipe, method, small=small if method.needs_small else None) as handle:
            found = tiny.latents(pipe)
            assert torch.isfinite(found).all()
            assert handle.trace.timeline() == TIMELINES[letter], "nothing was missing"
            assert all(not step.reason for step in handle.trace.steps)


@pytest.mark.parametrize("kind", STORES)
def test_every_store(kind):
    """Planned to the byte, never ready before it was written, and there is a method that keeps it."""
    method = STORING[kind]
    (store,) = [s for s in method.stores if s.kind == kind]
    assert isinstance(store, Store)
    assert dataclasses.replace(store) == store
    assert store.name == f"large.{kind}"
    for name in families():
        pipe, _ = tiny.family(name)
        with vaccel.accelerate(pipe, method) as handle:
            plan = handle.memory_plan(**tiny.arguments(pipe, steps=4))
            tiny.latents(pipe, steps=4)
            assert plan[store.name] > 0
            assert handle.nbytes == plan["total"]


@pytest.mark.parametrize("kind", STORES)
def test_no_store_is_ready_before_its_first_write(kind):
    from vaccel.cache import Buffers
    from vaccel.engine.call import Call
    from vaccel.engine.run import Run
    from vaccel.models.call import Stage
    from vaccel.models.transformer import Transformer

    method = STORING[kind]
    run = Run(method, 4, Buffers(), depth=4)
    stage = Stage(0, Transformer(tiny.wan_transformer(), FAMILIES["wan"]))
    x = torch.zeros(1, 16, 3, 4, 4)
    for branch in (0, 1):
        call = run.calls_bound[0, branch] = Call(run, stage, branch, x, False)
        call.inputs = {"hidden_states": x, "timestep": torch.zeros(1), "encoder_hidden_states": torch.zeros(1, 8, 32)}
        action = method.actions[2] if kind != "velocities" else actions.Forecast(actions.Weights.plain(1.0))
        assert action.missing(call)
        assert not call.slots[f"large.{kind}"].ready()


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("family", families())
def test_every_signal(name, family):
    """A method of three lines that watches it sees it, at the steps that show it."""
    kind, seen = SIGNALS[name], []

    @dataclasses.dataclass(frozen=True)
    class Watching(Method):
        id = f"watching-{name}"

        @property
        def needs_small(self):
            return name == "small"

        @property
        def adaptive(self):
            return False

        @property
        def stores(self):
            return (cache.LastOutput(), cache.OutputResidual(), cache.VelocityHistory(3), cache.BlockStates((0,)))

        @property
        def watches(self):
            return (kind,)

        def start(self, run):
            return Watcher()

    class Watcher(Policy):
        def decide(self, step):
            return actions.Rescale() if name == "small" and step.index % 2 else Full()

        def expects(self, index):
            return actions.Weights.plain(1.0) if index > 1 else None

        def observe(self, step, shown):
            seen.append(getattr(shown, name))

    pipe, small = tiny.family(family)
    try:
        with vaccel.accelerate(pipe, Watching(), small=small if name == "small" else None):
            tiny.latents(pipe, steps=6)
    finally:
        del _METHODS[Watching.id]
    assert len(seen) == 5, "after every step but the last"
    shown = [value for value in seen if value is not None and (name != "block_changes" or value)]
    expected = {"small": 2, "forecast_error": 3, "block_changes": 4}.get(name, 5)
    assert len(shown) == expected
    assert issubclass(kind, signals.Signal)


def test_every_method():
    assert METHODS.keys() == _METHODS.keys(), "a method that nobody has listed here"
    for name, method in METHODS.items():
        assert _METHODS[name].id == name
        if method is None:
            continue
        assert vaccel.method_from_json(json.loads(json.dumps(method.to_json()))) == method
        for family in families():
            pipe, small = tiny.family(family)
            with vaccel.accelerate(pipe, method, small=small if method.needs_small else None) as handle:
                assert torch.isfinite(tiny.latents(pipe)).all()
                assert handle.trace.finished


def test_every_family():
    for name, family in FAMILIES.items():  # those of other pipelines: tests/test_families.py
        assert isinstance(family, Family)
        assert family.name == name
        if name not in families():
            continue
        pipe, _ = tiny.family(name)
        assert type(pipe.transformer).__name__ in family.transformers
