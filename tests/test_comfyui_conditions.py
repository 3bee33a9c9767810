"""ComfyUI's model patch: which condition a row is of, and where conditions are too many to tell."""

from __future__ import annotations

import comfyui_double as comfy
import comfyui_levels as levels
import pytest
import torch
from comfyui_tiny import HALF, SHAPE, Tiny, last, model, noise, prompts, run

from vaccel.integrations.comfyui import Choice, patched

pytestmark = comfy.needs_k_diffusion


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("method", ["Forecast", "EasyCache", "Schedule"])
def test_one_forward_for_both_prompts_or_one_each(method, memory):
    """Nearly the same either way: what a policy looks at is the prompt that comes first."""
    choice = Choice(method, "threshold", 0.3) if method == "EasyCache" else Choice(method, "speed", 2.0)
    together, apart = model(), model()
    apart.model.memory = memory
    a, b = run(patched(together, choice)), run(fast := patched(apart, choice))
    assert (a - b).square().mean() < 1e-3 * a.square().mean()
    assert last(fast).computed == 2 * last(fast).computed_calls


def test_guidance_of_one_asks_for_the_prompt_alone():
    plain = model()
    fast = patched(plain, HALF)
    full, made = run(plain, cfg=1.0), run(fast, cfg=1.0)
    assert last(fast).forwards == 14
    assert last(fast).computed == 7
    assert (made - full).square().mean() < 0.01 * full.square().mean()


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("method", ["Forecast", "Schedule", "TeaCache", "EasyCache"])
def test_guidance_that_pauses_and_comes_back(method, memory):
    """The branch that was away is computed before anything stands in for it again: nothing of it is stale."""
    plain = model()
    plain.model.memory = memory
    positive, negative = prompts()
    first, second = ({**negative[0], **span} for span in ({"end_percent": 0.3}, {"start_percent": 0.7}))
    choice = Choice(method, "threshold", 0.02) if method == "EasyCache" else Choice(method, "speed", 2.0)
    fast = patched(plain, choice)
    guider = comfy.CFGGuider(fast)
    guider.set_conds(positive, [first, second])
    guider.original_conds["negative"][1]["uuid"] = guider.original_conds["negative"][0]["uuid"]  # the same prompt again
    guider.set_cfg(3.0)
    plain.model.diffusion_model.calls.clear()
    _without_range(guider, lambda: guider.sample(
        noise(), torch.zeros(1, *SHAPE), comfy.ksampler("euler"), levels.simple_sigmas(fast.model.model_sampling, 20)
    ))  # fmt: skip
    record = last(fast)
    assert record.finished
    assert record.computed < record.forwards, record.report()
    away = guider.original_conds["negative"][0]["uuid"]
    back = fast.model.model_sampling.percent_to_sigma(0.7)
    first_again = next(float(s) for s in levels.simple_sigmas(fast.model.model_sampling, 20) if s <= back)
    calls = plain.model.diffusion_model.calls
    seen = [call["sigma"] for call in calls if away in call["uuids"]]
    alone = [call["sigma"] for call in calls if first_again < call["sigma"] < max(seen)]
    assert any(sigma not in seen for sigma in alone), "nothing was computed while it was away"
    assert first_again in seen, "the negative prompt came back and something stale stood in for it"


def _without_range(guider, sampled):
    """Where a prompt has no part, the guided answer is the positive one's (ComfyUI divides nothing by nothing)."""
    guider.model_options["sampler_post_cfg_function"] = [
        lambda args: args["denoised"] if args["uncond_denoised"].any() else args["cond_denoised"]
    ]
    with torch.inference_mode():
        return sampled()


def test_a_batch_and_latents_of_another_shape():
    plain = model()
    fast = patched(plain, HALF)
    for shape, batch in ((SHAPE, 3), ((4, 8, 10), 2), (SHAPE, 1)):
        start = noise(batch, shape)
        full, made = run(plain, noise=start), run(fast, noise=start)
        assert made.shape == full.shape == (batch, *shape)
        assert (made - full).square().mean() < 0.01 * full.square().mean()
        assert last(fast).computed_calls == 7


@pytest.mark.parametrize("kind", ["area", "mask", "combined"])
def test_regional_prompts_are_computed_in_full_and_said_once(kind):
    positive, negative = prompts()
    second = {**prompts()[1][0]}
    if kind == "area":
        second["area"] = (3, 6, 3, 0)
    if kind == "mask":
        second["mask"] = torch.ones(6, 6).tril()
    plain = model()
    fast = patched(plain, HALF)
    conds = [*positive, second], negative
    assert torch.equal(run(fast, conds=conds), run(plain, conds=conds))
    said = [note for note in last(fast).notes if "computed in full" in note]
    assert len(said) == 1
    assert "areas" in said[0]
    assert set(last(fast).timeline) == {"F"}
    assert len(last(fast).timeline) == 14


def test_tiles_are_computed_in_full_and_said_once():
    """A patch that calls the network tile by tile."""
    plain = model()

    def tiled(executor, x, *args, **kwargs):
        return torch.cat([executor(part, *args, **kwargs) for part in x.split(3, -1)], -1)

    plain.add_wrapper_with_key(comfy.APPLY_MODEL, "tiles", tiled)
    fast = patched(plain, HALF)
    assert torch.equal(run(fast), run(plain))
    assert sum("tiles or areas" in note for note in last(fast).notes) == 1


def test_a_prompt_that_is_asked_twice_in_a_call_is_two_branches():
    """Guidance by a perturbed model (skipped layers) calls the same prompt again."""
    plain = model()

    def perturbed(args):
        options = dict(args["model_options"])
        again = comfy.calc_cond_batch(args["model"], [args["cond"]], args["input"] * 0.9, args["sigma"], options)[0]
        return args["denoised"] + 0.2 * (args["cond_denoised"] - again)

    plain.model_options["sampler_post_cfg_function"] = [perturbed]
    fast = patched(plain, HALF)
    full, made = run(plain), run(fast)
    assert (last(fast).forwards, last(fast).computed) == (42, 21), last(fast).report()
    assert (made - full).square().mean() < 0.02 * full.square().mean()


def test_image_conditions_behind_the_latents():
    plain = model()
    positive, negative = prompts()
    image = noise(seed=4)
    for cond in (*positive, *negative):
        cond["model_conds"]["concat"] = image
    fast = patched(plain, HALF)
    full, made = (run(p, conds=(positive, negative)) for p in (plain, fast))
    assert last(fast).computed_calls == 7
    assert (made - full).square().mean() < 0.01 * full.square().mean()


class Sounding(Tiny):
    """Video and sound in one list."""

    def _forward(self, x, timestep, context, control, transformer_options, **kwargs):
        video, sound = x
        out = super()._forward(video, timestep, context, control, transformer_options)
        return [out, torch.tanh(sound) * 0.4 + context.mean() + out.mean((1, 2, 3), keepdim=True)[..., 0] * 0.1]


def test_sound_beside_video():
    plain = comfy.ModelPatcher(comfy.BaseModel(Sounding(), levels.FlowSampling()).eval())
    fast = patched(plain, HALF)
    start = [noise(2), noise(2, (3, 11), seed=8)]
    full, made = (run(p, noise=start) for p in (plain, fast))
    assert last(fast).computed_calls == 7, last(fast).report()
    for a, b in zip(made, full, strict=True):
        assert a.shape == b.shape
        assert (a - b).square().mean() < 0.01 * b.square().mean()
