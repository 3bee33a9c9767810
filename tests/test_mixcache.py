"""MixCache against its plain loop, and its settings."""

from __future__ import annotations

import json

import oracle_caching
import pytest
import tiny
import torch
from oracle_caching import Mix
from test_oracle import MARGIN, ONE, SEED, TOLERANCE, oracle_task, pipeline

import vaccel

TWO = ["a red cat runs", "a blue dog sleeps"]
STEPS = 24
PLAIN = {"theta": 1.0, "d1": 0.3, "d2": 0.6}


def check(solver, settings, impacts=None, *, prompt=ONE, guidance=5.0, letters=None, dynamic=False):
    """Runs the method and the loop with the same settings and compares; returns the loop's run."""
    task = oracle_task(solver, prompt, guidance, STEPS)
    task.dynamic = dynamic
    fixed = {"fixed" if k == "interval" else k: v for k, v in settings.items()}
    expected = oracle_caching.mixcache(task, Mix(**fixed, impacts=impacts or {}))
    assert min(expected.margins, default=1.0) > MARGIN, (min(expected.margins), expected.timeline)
    if letters is not None:
        assert set(expected.timeline) == set(letters), expected.timeline
    weights = {f"{level}_impact": v for level, v in (impacts or {}).items() if level != "block"}
    if "block" in (impacts or {}):
        rows = (impacts["block"][c] for c in sorted(impacts["block"]))
        weights["block_impacts"] = tuple(tuple(r) if isinstance(r, list) else (r,) for r in rows)
    pipe, _ = pipeline(solver)
    method = vaccel.MixCache(**settings, **weights)
    with vaccel.accelerate(pipe, method) as handle:
        extra = {"use_dynamic_cfg": True} if dynamic else {}
        actual = tiny.latents(pipe, prompt, steps=STEPS, seed=SEED, guidance=guidance, **extra)
        trace = handle.trace
    assert trace.timeline() == expected.timeline
    blocks = [s.action.block for s in trace.steps if s.action.letter == "b"]
    assert blocks == [s.key for s in expected.steps if s.letter == "b"]
    error = (actual - expected.latents).double().norm() / expected.latents.double().norm()
    assert error < TOLERANCE, f"{error:.2e} at {trace.timeline()}"
    return expected


@pytest.mark.parametrize("branches", ["cond", "both"])
@pytest.mark.parametrize("solver", ["unipc", "euler", "cog-ddim", "cog-dpm"])
@pytest.mark.parametrize("guidance", [5.0, 1.0], ids=["cfg", "no-cfg"])
def test_mixcache(solver, guidance, branches):
    blocks = {1: 0.9, 2: 0.5, 3: 0.7} if not solver.startswith("cog") else {0: 0.8, 1: 0.6}
    run = check(
        solver, {**PLAIN, "intervals": (5, 4, 3), "block_branches": branches},
        {"step": 0.9, "cfg": 0.02, "block": blocks}, guidance=guidance,
    )  # fmt: skip
    assert len(set(run.timeline)) >= 3, run.timeline


@pytest.mark.parametrize(
    ("settings", "letters"),
    [
        ({"levels": ("step",), "penalty": False}, "Fo"),
        ({"levels": ("cfg",), "penalty": False}, "Fg"),
        ({"levels": ("block",), "penalty": False}, "Fb"),
        ({"interval": 4}, None),
        ({"penalty": False, "intervals": (5, 4, 3)}, None),
        ({"levels": ("step",)}, "Fo"),
    ],
    ids=["step only", "cfg only", "block only", "N = 4", "without penalty", "step only, penalty"],
)
@pytest.mark.parametrize("solver", ["unipc", "cog-ddim"])
def test_the_papers_ablations(solver, settings, letters):
    check(solver, {**PLAIN, **settings}, {"cfg": 0.02}, letters=letters)


def test_impacts_by_step_choose_the_block():
    early, late = [0.1] * 12 + [5.0] * 12, [5.0] * 12 + [0.1] * 12
    run = check("unipc", {**PLAIN, "levels": ("block",), "penalty": False},
                {"block": {1: early, 2: [9.0] * STEPS, 3: late}})  # fmt: skip
    assert {s.key for s in run.steps if s.letter == "b"} == {1, 3}


@pytest.mark.parametrize("solver", ["unipc", "cog-ddim"])
def test_the_most_cautious_sample_decides(solver):
    check(solver, PLAIN, {"cfg": 0.02}, prompt=TWO)


def test_guidance_that_changes_with_the_step():
    check("cog-ddim", PLAIN, {"cfg": 0.02}, dynamic=True)


def test_at_threshold_zero_every_step_is_computed(wan):
    plain = tiny.latents(wan, steps=STEPS)
    with (
        vaccel.accelerate(wan, vaccel.MixCache(theta=0.0)) as handle,
        pytest.warns(UserWarning, match="computed all 24 steps in full"),
    ):
        assert torch.equal(tiny.latents(wan, steps=STEPS), plain)
    assert handle.trace.timeline() == "F" * STEPS
    assert torch.equal(tiny.latents(wan, steps=STEPS), plain)


def test_a_replayed_trace_is_the_run(wan):
    with vaccel.accelerate(wan, vaccel.MixCache(**PLAIN, cfg_impact=0.02)) as handle:
        made = tiny.latents(wan, steps=STEPS)
        again = tiny.latents(wan, steps=STEPS)
        schedule = handle.trace.as_schedule()
    assert torch.equal(made, again)
    assert {"b", "F"} <= set(schedule.timeline)
    assert vaccel.method_from_json(json.loads(json.dumps(schedule.to_json()))) == schedule
    with vaccel.accelerate(wan, schedule):
        assert torch.equal(tiny.latents(wan, steps=STEPS), made)


def test_settings():
    eff = vaccel.MixCache.preset("wan2.1-t2v-14b", intervals="eff")
    assert (eff.candidates, eff.lengths, eff.theta, eff.d1, eff.d2) == ((10, 20, 30), (5, 4, 3), 0.1, 0.05, 0.1)
    assert eff.keeps_states(40) == (10, 20, 30)
    assert vaccel.MixCache().keeps_states(30) == (7, 15, 22)
    assert vaccel.method_from_json(json.loads(json.dumps(eff.to_json()))) == eff
    cog = vaccel.MixCache.preset("cogvideox-5b")
    assert (cog.d1, cog.d2, cog.lengths) == (0.3, 0.4, (4, 3, 2))
    for settings, message in [
        ({"theta": -1}, "theta"), ({"d1": 0.2}, "d1"), ({"intervals": "fast"}, "intervals"), ({"levels": ()}, "levels"),
        ({"block_branches": "none"}, "block_branches"), ({"interval": 0}, "interval"), ({"cfg_impact": -1}, "impacts"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            vaccel.MixCache(**settings)


def test_candidates_and_impacts_must_fit_the_model(wan):
    with vaccel.accelerate(wan, vaccel.MixCache(candidates=(10, 20))), pytest.raises(ValueError, match="no blocks of"):
        tiny.latents(wan)
    unused = vaccel.MixCache(theta=1.0, levels=("step",), penalty=False, block_impacts=((1.0,), (1.0,)))
    with vaccel.accelerate(wan, unused) as handle:
        tiny.latents(wan)
        assert set(handle.trace.timeline()) == {"F", "o"}
    method = vaccel.MixCache(block_impacts=((1.0,), (1.0,)))
    with vaccel.accelerate(wan, method), pytest.raises(ValueError, match="one row for each"):
        tiny.latents(wan)
