"""The loops of ``oracle_caching`` held against themselves and against loops simpler still; no method is run here."""

from __future__ import annotations

import functools
import math
from typing import Any

import oracle
import oracle_models
import pytest
import tiny
import torch
from oracle_caching import Mix, block_list, compute, lemica_edge, mixcache, scheduled
from test_qwen_image import qwen_task

ONE = "a red cat runs"
TWO = ["a red cat runs", "a blue dog sleeps"]
STEPS = 10
ALWAYS = {"theta": math.inf}  # the warm-up ends as soon as there is anything to compare: steps 0 and 1

families = pytest.mark.parametrize("family", ["wan", "cog", "qwen"])
both_reuses = pytest.mark.parametrize("reuse", ["blocks", "residual"])


@functools.cache
def pipeline(family: str) -> Any:
    return tiny.cog_pipeline(transformer=tiny.cog_transformer(layers=4)) if family == "cog" else tiny.wan_pipeline()


@torch.no_grad()
def make(family: str, prompt: str | list[str] = ONE, *, guidance: float = 5.0, steps: int = STEPS) -> oracle.Task:
    if family == "qwen":
        return qwen_task(prompt, guidance, steps)
    cog, pipe = family == "cog", pipeline(family)
    call = tiny.COG_CALL if cog else tiny.WAN_CALL
    size, frames, channels = (call["height"], call["width"]), call["num_frames"], pipe.transformer.config.in_channels
    batch = 1 if isinstance(prompt, str) else len(prompt)
    generator = [torch.Generator().manual_seed(5 + i) for i in range(batch)]
    cond, uncond = pipe.encode_prompt(
        prompt, do_classifier_free_guidance=guidance > 1, max_sequence_length=call["max_sequence_length"]
    )
    shape = (frames, *size) if cog else (*size, frames)
    latents = pipe.prepare_latents(batch, channels, *shape, torch.float32, torch.device("cpu"), generator)
    rotary = None
    if cog:
        rotary = pipe._prepare_rotary_positional_embeddings(*size, latents.shape[1], torch.device("cpu"))
    return oracle.Task(
        large=pipe.transformer,
        scheduler=pipe.scheduler,
        latents=latents,
        cond=cond,
        uncond=uncond,
        guidance=guidance,
        steps=steps,
        generator=generator,
        batched=cog,
        rotary=rotary,
    )


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@torch.no_grad()
def replay(task: oracle.Task, letters: str) -> torch.Tensor:
    """The loop of F, o and g, without a decision in it."""
    solver, x = oracle.Solver(task), task.latents
    for i, t in enumerate(solver.timesteps):
        if letters[i] == "F":
            out = oracle_models.evaluate(task.large, task, x, t, task.names)
            delta = out["uncond"] - out["cond"]
        elif letters[i] == "g":
            cond = oracle_models.evaluate(task.large, task, x, t, ("cond",))["cond"]
            out = {"cond": cond, "uncond": cond + delta}
        x = solver.step(i, task.guide(out, t), x)
    return x


# --- inside the model -----------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_blocks_resume_from_the_given_state_and_come_back(family: str) -> None:
    task, t = make(family, TWO), torch.tensor(437)
    blocks = list(block_list(task.large))
    plain = oracle_models.evaluate(task.large, task, task.latents, t, task.names)
    out, cache = compute(task, task.latents, t, task.names, range(4), None, {})
    for name in task.names:
        same(out[name], plain[name])
        assert sorted(cache[name]) == [0, 1, 2, 3]
    for begin in range(4):
        for names in (("cond",), task.names):
            again, seen = compute(task, task.latents, t, names, range(4), begin, cache)
            assert sorted(seen["cond"]) == list(range(begin + 1, 4))
            for name in names:  # the same state and timestep: nothing has changed
                torch.testing.assert_close(again[name], plain[name], rtol=1e-5, atol=1e-6)
    # At another timestep and other latents only the state decides what enters the next block.
    entered = []
    hook = blocks[2].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    other, _ = compute(task, 2 * task.latents, torch.tensor(12), ("cond",), [], 1, cache)
    hook.remove()
    same(entered[0], cache["cond"][1][0])
    assert not torch.equal(other["cond"], plain["cond"])
    assert all(a is b for a, b in zip(block_list(task.large), blocks, strict=True))
    assert not any(block._forward_hooks for block in blocks)


@families
@torch.no_grad()
def test_blocks_cached_at_the_last_leave_the_head(family: str) -> None:
    task = make(family)
    early, late, x = torch.tensor(437), torch.tensor(400), 0.9 * task.latents
    _, cache = compute(task, task.latents, early, ("cond",), [3], None, {})
    out, _ = compute(task, x, late, ("cond",), [3], 3, cache)
    # The head alone: no residual on tokens that are the cached state less those of x.
    entered = {}
    embed = getattr(task.large, {"wan": "patch_embedding", "cog": "patch_embed", "qwen": "img_in"}[family])
    hook = embed.register_forward_hook(lambda module, args, result: entered.update(tokens=result))
    oracle_models.evaluate(task.large, task, x, late, ("cond",))
    hook.remove()
    tokens = entered["tokens"]
    if family == "cog":
        tokens = tokens[:, task.cond.shape[1] :]
    elif family == "wan":
        tokens = tokens.flatten(2).transpose(1, 2)
    expected, _ = oracle_models.stack_forward(task.large, task, x, late, task.cond, cache["cond"][3][0] - tokens)
    torch.testing.assert_close(out["cond"], expected, rtol=1e-5, atol=1e-5)


# --- MixCache -------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("guidance", [5.0, 1.0], ids=["cfg", "no-cfg"])
@pytest.mark.parametrize("prompt", [ONE, TWO], ids=["one", "two"])
def test_mixcache_that_never_warms_up_is_the_plain_loop(family: str, guidance: float, prompt: str | list[str]) -> None:
    task = make(family, prompt, guidance=guidance, steps=6)
    run = mixcache(task, Mix(theta=0.0))
    assert run.timeline == "F" * 6
    same(run.latents, oracle.full(task).latents)
    assert all(step.N is None and not step.P for step in run.steps)


@families
@pytest.mark.parametrize(("levels", "letter"), [(["step"], "o"), (["cfg"], "g")])
def test_mixcache_with_one_level_is_its_plain_loop(family: str, levels: list[str], letter: str) -> None:
    task = make(family, TWO)
    run = mixcache(task, Mix(**ALWAYS, levels=levels, penalty=False, fixed=4))
    assert run.timeline == "F" + ("F" + 3 * letter) * 2 + "F"
    torch.testing.assert_close(run.latents, replay(task, run.timeline), rtol=1e-6, atol=1e-6)
    # No second level to turn to: the penalty leaves a full step.
    run = mixcache(task, Mix(**ALWAYS, levels=levels, fixed=4))
    assert run.timeline == "F" + ("F" + letter) * 4 + "F"
    assert all(step.forced for step in run.steps[3::2])


@families
@pytest.mark.parametrize("branches", ["cond", "both"])
@pytest.mark.parametrize("guidance", [5.0, 1.0], ids=["cfg", "no-cfg"])
def test_mixcache_block_level(family: str, branches: str, guidance: float) -> None:
    task = make(family, TWO, guidance=guidance, steps=7)
    run = mixcache(task, Mix(**ALWAYS, levels=["block"], candidates=[1], block_branches=branches, penalty=False))
    assert set(run.timeline) == {"F", "b"}
    assert {s.key for s in run.steps} == {None, 1}
    assert not any(s.renewed for s in run.steps if s.letter == "b")  # no candidate after the only one
    error = (run.latents - oracle.full(task).latents).abs().mean()
    assert 0 < error < 0.2 * run.latents.abs().mean()


@families
@pytest.mark.parametrize("prompt", [ONE, TWO], ids=["one", "two"])
def test_mixcache_mixes_under_its_rules(family: str, prompt: str | list[str]) -> None:
    task = make(family, prompt, steps=20)
    impacts: dict[str, Any] = {"block": {k: [1.0 + 0.1 * i for i in range(20)] for k in (1, 2, 3)}}
    run = mixcache(task, Mix(theta=1.0, d1=0.02, d2=0.2, intervals=(5, 4, 3), impacts=impacts))
    assert len(set(run.timeline)) > 2, run.timeline
    assert "oo" not in run.timeline
    assert "gg" not in run.timeline
    assert "bb" not in run.timeline
    for i, step in enumerate(run.steps):
        assert (step.letter == "F") == (step.key is None)
        if step.key is None:
            assert not step.P
            continue
        before = run.steps[i - 1]
        assert step.P[step.key] == min(step.P.values())
        assert before.level not in {k if isinstance(k, str) else "block" for k in step.P}
        for key, p in step.P.items():
            weight = 1.0 if isinstance(key, str) else 1.0 + 0.1 * (i - 1)
            assert p == pytest.approx(max(before.D[key]) * weight)
        if step.level == "block":
            assert all(isinstance(k, int) and k > step.key for k in step.renewed)
        assert step.level != "step" or not step.renewed
        assert step.D.keys() == before.D.keys()
        assert all(step.D[k] == before.D[k] for k in step.D.keys() - step.renewed)
    assert min(run.margins) == min(step.margin for step in run.steps)


@families
@pytest.mark.parametrize("n", [1, 3, 5])
def test_mixcache_fixed_cycle(family: str, n: int) -> None:
    run = mixcache(make(family), Mix(**ALWAYS, fixed=n))
    assert [i for i, letter in enumerate(run.timeline) if letter == "F"] == [0, *range(1, STEPS, n)]
    assert all((None if i < 2 else n) == step.N for i, step in enumerate(run.steps))


@families
@pytest.mark.parametrize(("d1", "d2", "n"), [(math.inf, math.inf, 4), (0.0, math.inf, 3), (0.0, 0.0, 2)])
def test_mixcache_interval_follows_the_thresholds(family: str, d1: float, d2: float, n: int) -> None:
    task, fixed = make(family), Mix(**ALWAYS, fixed=n)
    run = mixcache(task, Mix(**ALWAYS, d1=d1, d2=d2))
    assert run.timeline == mixcache(task, fixed).timeline
    assert [step.N for step in run.steps] == [None] * 2 + [n] * (STEPS - 2)


@families
def test_mixcache_impact_decides(family: str) -> None:
    task = make(family)
    low = {"step": ("o", {"step": 0.0}), "cfg": ("g", {"cfg": 0.0}), "block": ("b", {"block": {2: 0.0}})}
    for level, (letter, impacts) in low.items():
        run = mixcache(task, Mix(**ALWAYS, impacts=impacts, fixed=4))
        cycles = [run.timeline[i : i + 4] for i in range(1, STEPS - 3, 4)]
        assert all(cycle[1] == cycle[3] == letter and cycle[2] != letter for cycle in cycles), run.timeline
        free = mixcache(task, Mix(**ALWAYS, impacts=impacts, fixed=4, penalty=False))
        assert set(free.timeline) == {"F", letter}
        assert level != "block" or {step.key for step in free.steps} == {None, 2}


@families
def test_mixcache_without_guidance_has_no_cfg_level(family: str) -> None:
    run = mixcache(make(family, guidance=1.0), Mix(**ALWAYS, impacts={"cfg": 0.0}, fixed=4))
    assert set(run.timeline) == {"F", "o", "b"}
    assert all("cfg" not in step.D for step in run.steps)


@families
def test_mixcache_batch_follows_its_most_cautious_sample(family: str) -> None:
    alone = [mixcache(make(family, TWO[:1]), Mix(theta=0.0)), mixcache(make(family, TWO), Mix(theta=0.0))]
    # Nothing cached: each sample measures what it measures alone.
    for one, two in zip(*(run.steps for run in alone), strict=True):
        for key in one.D:
            assert two.D[key][0] == pytest.approx(one.D[key][0], rel=1e-4)
    # The warm-up ends at the first step at which both are below.
    changes = [step.D["step"] for step in alone[1].steps[1:]]
    theta = sorted(max(c) for c in changes)[len(changes) // 2] * 1.0001
    end = next(i for i, c in enumerate(changes, 1) if max(c) < theta)
    run = mixcache(make(family, TWO), Mix(theta=theta, fixed=3))
    assert run.steps[end].N is None
    assert run.steps[end + 1].N == 3
    # A threshold between the two samples: the larger change decides the cycle.
    low, high = sorted(alone[1].steps[1].D_full)
    d = (low + high) / 2
    run = mixcache(make(family, TWO), Mix(**ALWAYS, d1=d, d2=math.inf))
    assert low < d < high
    assert run.steps[2].N == 3


# --- LeMiCa ---------------------------------------------------------------------------------------------------------


@families
@both_reuses
def test_scheduled_in_full_is_the_plain_loop(family: str, reuse: str) -> None:
    task = make(family, TWO, steps=6)
    run = scheduled(task, range(6), reuse)
    assert run.timeline == "FFFFFF"
    torch.testing.assert_close(run.latents, oracle.full(task).latents, rtol=1e-5, atol=1e-5)
    assert scheduled(task, [0, 3, 5], reuse).timeline == "FrrFrF"


@families
@both_reuses
def test_edges(family: str, reuse: str) -> None:
    task = make(family, steps=6)
    assert lemica_edge(task, 0, 1, reuse) == lemica_edge(task, 3, 4, reuse) == 0
    errors = [lemica_edge(task, 1, j, reuse) for j in (3, 4, 3)]
    assert 0 < errors[0] < errors[1]
    assert errors[2] == errors[0]  # the task is not used up
    cached = scheduled(task, [0, 1, 4, 5], reuse).latents
    full = scheduled(task, range(6), reuse).latents
    assert errors[1] == (cached.double() - full.double()).abs().mean().item()
