"""Faults that users of other caches hit (numbers as in the project's list of them), each a test of ours."""

from __future__ import annotations

import accelerate as hf_accelerate
import pytest
import tiny
import torch
from diffusers.hooks import apply_group_offloading

import vaccel
from vaccel.actions import Full, Residual, Small

STEPS = 12


def skipping(steps: int = STEPS, reuse: str = "blocks") -> vaccel.Schedule:
    """Full on every third step."""
    return vaccel.Schedule(range(0, steps, 3), num_steps=steps, reuse=reuse)


def test_fault_1_two_pipelines_of_one_class_do_not_touch_each_other(wan):
    other = tiny.wan_pipeline(transformer=tiny.wan_transformer(5))
    plain = tiny.latents(other)
    handle = vaccel.accelerate(wan, skipping())
    assert torch.equal(tiny.latents(other), plain)
    second = vaccel.accelerate(other, skipping(reuse="residual"))
    accelerated = tiny.latents(wan)
    assert handle.trace.timeline() == "FrrFrrFrrFrr"
    handle.remove()
    tiny.latents(other)
    assert second.trace.calls == {"large": 8, "small": 0}
    second.remove()
    assert torch.equal(tiny.latents(other), plain)
    assert not torch.equal(tiny.latents(wan), accelerated)


def test_fault_2_without_guidance_every_call_is_a_step(wan):
    with vaccel.accelerate(wan, skipping()) as handle:
        tiny.latents(wan, guidance=1.0)
        assert handle.trace.timeline() == "FrrFrrFrrFrr"
        assert handle.trace.calls == {"large": 4, "small": 0}
        assert handle.trace.finished


def test_fault_3_the_step_count_may_change_between_calls(wan, small):
    with vaccel.accelerate(wan, vaccel.DirectionMagnitude(threshold=0.005), small=small) as handle:
        for steps in (20, 12, 30, 20):
            tiny.latents(wan, steps=steps)
            assert len(handle.trace.timeline()) == handle.trace.num_steps == steps
            assert handle.trace.finished
        first, last = handle.traces[0], handle.traces[-1]
        assert first.timeline() == last.timeline()


def test_fault_3_two_transformers_share_one_step_index():
    """Wan 2.2 changes its transformer in the middle: the index goes on, the caches do not cross."""
    pipe = tiny.wan_pipeline(transformer_2=tiny.wan_transformer(9), boundary_ratio=0.7)
    plain = tiny.latents(pipe, guidance_scale_2=3.0)
    with vaccel.accelerate(pipe, skipping()) as handle:
        tiny.latents(pipe, guidance_scale_2=3.0)
        steps = handle.trace.steps
        assert [s.index for s in steps] == list(range(STEPS))
        computed = [s for s in steps if "no large.blocks cached for this model yet" in s.reason]
        boundary = next(i for i, t in enumerate(pipe.scheduler.timesteps) if t < 700)
        expected = [boundary] if boundary % 3 else []
        assert [s.index for s in computed] == expected
        assert expected, "the boundary should fall on a skipped step for this test to say something"
    assert torch.equal(tiny.latents(pipe, guidance_scale_2=3.0), plain)


def test_fault_3_a_rendering_step_with_nothing_cached_is_the_small_models(small):
    """What the small model would have reused, the small model computes: never the large one."""
    pipe = tiny.wan_pipeline(transformer_2=tiny.wan_transformer(9), boundary_ratio=0.7)
    reused = Residual(model="small")
    with vaccel.accelerate(
        pipe, vaccel.Schedule.from_actions([Full(), Small()] + [reused] * 10), small=small
    ) as handle:
        tiny.latents(pipe, guidance_scale_2=3.0)
        boundary = next(i for i, t in enumerate(pipe.scheduler.timesteps) if t < 700)
        expected = ["F", "s"] + ["r"] * 10
        expected[boundary] = "s"
        assert boundary > 1
        assert handle.trace.timeline() == "".join(expected)
        assert handle.trace.calls == {"large": 2, "small": 4}


@pytest.mark.parametrize("reuse", ["blocks", "residual"])
def test_fault_4_an_in_place_kernel_cannot_reach_the_caches(wan, reuse):
    """Without guidance the pipeline holds the very tensor the engine returned; here its scheduler ruins it."""
    step = wan.scheduler.step
    with vaccel.accelerate(wan, skipping(reuse=reuse)):
        expected = tiny.latents(wan, guidance=1.0)

        def ruinous(output, t, sample, **kwargs):
            result = step(output.clone(), t, sample.clone(), **kwargs)
            output.fill_(float("nan"))
            return result

        wan.scheduler.step = ruinous
        assert torch.equal(tiny.latents(wan, guidance=1.0), expected)


def test_fault_5_a_threshold_too_small_to_matter_says_so(wan):
    with vaccel.accelerate(wan, vaccel.TeaCache(threshold=1e-9, coefficients=(1.0, 0.0))) as handle:
        with pytest.warns(UserWarning, match="computed all 12 steps in full"):
            tiny.latents(wan)
        assert any("too small" in note for note in handle.trace.notes)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_fault_6_an_aborted_run_leaves_nothing_behind(name, error, skipping_methods):
    pipe, small = tiny.family(name)

    def abort(pipe, i, t, kwargs):
        if i == 9:
            raise error("stop")
        return kwargs

    for method in skipping_methods:
        with vaccel.accelerate(pipe, method, small=small if method.needs_small else None) as handle:
            expected = tiny.latents(pipe, "a blue dog sleeps", steps=20)
            with pytest.raises(error, match="stop"):
                tiny.latents(pipe, steps=20, seed=3, callback_on_step_end=abort)
            assert len(handle.trace.timeline()) == 10
            assert not handle.trace.finished
            with pytest.raises(ValueError, match="stopped at step 10 of 20"):
                handle.trace.as_schedule()
            assert torch.equal(tiny.latents(pipe, "a blue dog sleeps", steps=20), expected), method


def _sequential(model):
    hf_accelerate.cpu_offload(model, execution_device="cpu")


def _whole(model):
    hf_accelerate.cpu_offload_with_hook(model, execution_device="cpu")


def _groups(model):
    apply_group_offloading(
        model,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )


@pytest.mark.parametrize("offload", [_sequential, _whole, _groups])
@pytest.mark.parametrize("first", ["offload", "accelerate"])
def test_fault_7_offload_and_caching_together(wan, offload, first):
    plain = tiny.latents(wan)
    for method in (skipping(), skipping(reuse="residual"), vaccel.TeaCache(threshold=0.6, coefficients=(1.0, 0.0))):
        with vaccel.accelerate(wan, method):
            expected = tiny.latents(wan)
        pipe = tiny.wan_pipeline()
        if first == "offload":
            offload(pipe.transformer)
        handle = vaccel.accelerate(pipe, method)
        if first == "accelerate":
            offload(pipe.transformer)
        assert torch.equal(tiny.latents(pipe), expected)
        assert "r" in handle.trace.timeline()
        handle.remove()
        assert torch.equal(tiny.latents(pipe), plain)
        assert "_hf_hook" in vars(pipe.transformer) or offload is _groups


@pytest.mark.parametrize("first", ["offload", "accelerate"])
def test_fault_7_offload_that_a_pipeline_renews_after_every_run(wan, first):
    """``enable_model_cpu_offload`` is taken off and put on again by ``maybe_free_model_hooks``."""
    plain = tiny.latents(wan)
    model = wan.transformer
    if first == "offload":
        _whole(model)
    handle = vaccel.accelerate(wan, skipping())
    if first == "accelerate":
        _whole(model)
    skipped = tiny.latents(wan)
    for count in (2, 3):
        hf_accelerate.hooks.remove_hook_from_module(model, recurse=True)
        _whole(model)
        assert torch.equal(tiny.latents(wan), skipped)
        assert len(handle.traces) == count
    handle.remove()
    assert torch.equal(tiny.latents(wan), plain)
    hf_accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert torch.equal(tiny.latents(wan), plain)


def test_fault_7_skipped_blocks_are_never_loaded(wan):
    _sequential(wan.transformer)
    loads = []
    hook = wan.transformer.blocks[2].attn1.to_q._hf_hook
    load = hook.pre_forward
    hook.pre_forward = lambda *args, **kwargs: (loads.append(1), load(*args, **kwargs))[1]
    with vaccel.accelerate(wan, skipping()) as handle:
        tiny.latents(wan)
        assert len(loads) == handle.trace.calls["large"] == 8


def test_fault_11_a_second_prompt_starts_fresh(wan, small, skipping_methods):
    for method in skipping_methods:
        helper = small if method.needs_small else None
        with vaccel.accelerate(wan, method, small=helper):
            alone = tiny.latents(wan, "a blue dog sleeps", steps=20, seed=1)
        with vaccel.accelerate(wan, method, small=helper):
            tiny.latents(wan, steps=20)
            assert torch.equal(tiny.latents(wan, "a blue dog sleeps", steps=20, seed=1), alone), method
