"""MixCache and LeMiCa on Qwen-Image, two calls a step and rescaled guidance, against their plain loops."""

from __future__ import annotations

import oracle_caching
import pytest
import tiny
import torch
from oracle_caching import Mix
from test_oracle import MARGIN, TOLERANCE
from test_qwen_image import ONE, SEED, distance, guidances, prompts, qwen_task, reuses

import vaccel
from vaccel.calibrate.replay import Replayer, Stretch

STEPS = 24
PLAIN = {"theta": 0.04, "d1": 0.107, "d2": 0.13, "intervals": (5, 4, 3)}
#: Three steps long no block is favoured, then each of them in turn.
IMPACTS = {
    "step": 0.8,
    "cfg": 1.8,
    "block": {k: [0.5 if i // 3 % 4 == k else 2.0 for i in range(STEPS)] for k in (1, 2, 3)},
}


def negative(prompt):
    """Of other lengths than the prompts: each branch comes with a mask of its own."""
    return ["dog", "a blue cat sleeps"] if isinstance(prompt, list) else "dog"


def sampled(pipe, prompt, guidance, steps):
    extra = {"negative_prompt": negative(prompt)} if guidance > 1 else {}
    return tiny.latents(pipe, prompt, steps=steps, seed=SEED, guidance=guidance, **extra)


def check(settings, impacts, *, prompt=ONE, guidance=4.0, letters=None):
    """Runs the method and the loop with the same settings and compares; returns the loop's run."""
    task = qwen_task(prompt, guidance, STEPS, negative(prompt))
    fixed = {"fixed" if k == "interval" else k: v for k, v in settings.items()}
    expected = oracle_caching.mixcache(task, Mix(**fixed, impacts=impacts))
    assert min(expected.margins, default=1.0) > MARGIN, (min(expected.margins), expected.timeline)
    assert letters is None or set(expected.timeline) == set(letters), expected.timeline
    weights = {f"{level}_impact": v for level, v in impacts.items() if level != "block"}
    if "block" in impacts:
        weights["block_impacts"] = tuple(tuple(impacts["block"][k]) for k in sorted(impacts["block"]))
    pipe = tiny.qwen_pipeline()
    with vaccel.accelerate(pipe, vaccel.MixCache(**settings, **weights)) as handle:
        actual, trace = sampled(pipe, prompt, guidance, STEPS), handle.trace
    assert trace.timeline() == expected.timeline
    blocks = [s.action.block for s in trace.steps if s.action.letter == "b"]
    assert blocks == [s.key for s in expected.steps if s.letter == "b"]
    assert distance(actual, expected.latents) < TOLERANCE, trace.timeline()
    return expected


@prompts
@guidances
@pytest.mark.parametrize("branches", ["cond", "both"])
def test_mixcache(prompt, guidance, branches):
    letters = "Fogb" if guidance > 1 else "Fob"
    run = check({**PLAIN, "block_branches": branches}, IMPACTS, prompt=prompt, guidance=guidance, letters=letters)
    assert {s.key for s in run.steps if s.letter == "b"} == {1, 2, 3}
    assert len({s.N for s in run.steps} - {None}) >= 2


@prompts
@pytest.mark.parametrize(("level", "letter"), [("step", "o"), ("cfg", "g"), ("block", "b")])
def test_mixcache_with_one_level(prompt, level, letter):
    impacts = {k: v for k, v in IMPACTS.items() if k == level}
    run = check({**PLAIN, "levels": (level,), "penalty": False}, impacts, prompt=prompt, letters="F" + letter)
    assert 2 * letter in run.timeline
    run = check({**PLAIN, "levels": (level,), "interval": 4}, impacts, prompt=prompt, letters="F" + letter)
    assert 2 * letter not in run.timeline


@prompts
@guidances
@reuses
def test_lemica(prompt, guidance, reuse):
    full = (0, 1, 2, 5, 9, 11)
    task = qwen_task(prompt, guidance, 12, negative(prompt))
    expected = oracle_caching.scheduled(task, full, reuse)
    pipe = tiny.qwen_pipeline()
    with vaccel.accelerate(pipe, vaccel.LeMiCa(full, 12, reuse=reuse)) as handle:
        actual = sampled(pipe, prompt, guidance, 12)
        assert handle.trace.timeline() == expected.timeline == "FFFrrFrrrFrF"
    assert distance(actual, expected.latents) < TOLERANCE
    assert distance(actual, sampled(pipe, prompt, guidance, 12)) > 100 * TOLERANCE


@pytest.mark.parametrize("ends", [[(1, 4)], [(5, 7)], [(0, 6), (2, 6), (4, 6)]], ids=["early", "late", "one batch"])
@guidances
@reuses
def test_edges_are_the_oracles(guidance, reuse, ends):
    steps, pipe = 8, tiny.qwen_pipeline()
    call = {k: v for k, v in tiny.QWEN_CALL.items() if k != "output_type"}
    call |= {"num_inference_steps": steps, "true_cfg_scale": guidance}
    if guidance > 1:
        call["negative_prompt"] = negative(ONE)
    plain = sampled(pipe, ONE, guidance, steps)
    with Replayer(pipe, call, reuse=reuse) as replayer:
        record = replayer.record(ONE, SEED)
        errors = replayer.errors(record, [Stretch(*e) for e in ends], ONE, SEED)
        assert replayer.errors(record, [Stretch(3, 4)], ONE, SEED) == [0.0], "exactly: nothing was skipped"
    task = qwen_task(ONE, guidance, steps, negative(ONE))
    expected = [oracle_caching.lemica_edge(task, *e, reuse) for e in ends]
    assert errors == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 0
    assert torch.equal(record.final, plain)
    assert torch.equal(sampled(pipe, ONE, guidance, steps), plain)
