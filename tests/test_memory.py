"""The bytes a method will hold are known in advance, and are what it then holds."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from zoo import generate, load_all
from zoo.memory import check_memory

import vaccel

CASES = load_all()
#: Two stages, a cascade of two loops, sound beside video, one row of both branches, pixels, a guider, a U-Net, text
#: within the blocks.
KINDS = (
    "WanPipeline-two-stages", "StableCascadeCombinedPipeline", "LTX2Pipeline", "ZImagePipeline",
    "StableDiffusionPipeline", "FluxPipeline", "Lumina2Pipeline", "MochiPipeline",
)  # fmt: skip
METHOD = vaccel.Schedule([0, 1, 4, 8], num_steps=12)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("name", ["wan", "cogvideox", "qwen-image"])
def test_the_plan_is_what_is_allocated(name, guidance, skipping_methods):
    pipe, small = tiny.family(name)
    call = tiny.arguments(pipe, steps=20, guidance=guidance)
    methods = [
        *skipping_methods,
        vaccel.SRDiffusion(threshold=0.05, signal="latents"),
        vaccel.SRDiffusion(threshold=0.05, signal="denoised"),
        vaccel.DirectionMagnitude(magnitude="projection"),
    ]
    for method in methods:
        with vaccel.accelerate(pipe, method, small=small if method.needs_small else None) as handle:
            plan = handle.memory_plan(**call)
            assert handle.nbytes == 0
            pipe(generator=torch.Generator().manual_seed(0), **call)
            assert handle.nbytes == plan["total"] == sum(plan.values()) - plan["total"], method


@pytest.mark.parametrize("name", KINDS)
def test_of_every_kind_of_pipeline(name):
    assert not check_memory(CASES[name])


def test_of_nothing_where_nothing_is_kept(wan):
    with vaccel.accelerate(wan, vaccel.methods.Schedule.from_timeline("FFFF")) as handle:
        plan = handle.memory_plan(**tiny.arguments(wan, steps=4))
        tiny.latents(wan, steps=4)
        assert plan["total"] == handle.nbytes


def test_it_costs_one_forward_a_branch(wan):
    made = []
    hook = wan.transformer.register_forward_hook(lambda *_: made.append(1))
    with vaccel.accelerate(wan, METHOD) as handle:
        handle.memory_plan(**tiny.arguments(wan, steps=12))
    hook.remove()
    assert len(made) == 2


def test_a_run_that_is_going_on_is_not_touched(wan):
    """Planned from within a callback, as a server may: the run and its caches go on as they were."""
    plans = []
    with vaccel.accelerate(wan, METHOD) as handle:
        expected = tiny.latents(wan)
        again = tiny.arguments(wan, steps=12, height=48)

        def plan(pipe, index, t, given):
            if index == 1:
                state = copy.deepcopy(pipe.scheduler)
                plans.append(handle.memory_plan(**again)["total"])
                pipe.scheduler = state
            return given

        assert torch.equal(tiny.latents(wan, callback_on_step_end=plan), expected)
    assert plans


def test_bad_calls_are_the_pipelines_own_errors(wan):
    shown = dict(wan._progress_bar_config)
    with vaccel.accelerate(wan, METHOD) as handle:
        with pytest.raises(TypeError, match="frames"):
            handle.memory_plan(frames=9)
        with pytest.raises(ValueError, match="divisible"):
            handle.memory_plan(height=33, width=32, num_frames=9)
        assert handle.nbytes == 0
        assert not handle.traces
        assert wan._progress_bar_config == shown
    with pytest.raises(RuntimeError, match="removed"):
        handle.memory_plan(height=32)


def test_a_cascade_is_called_again_with_loops_of_other_lengths():
    """The timesteps that the last call has left with the decoder's scheduler are none of the prior's loop."""
    case = CASES["StableCascadeCombinedPipeline"]
    pipe = case.build()
    plain = generate(case, pipe, 4)
    with vaccel.accelerate(pipe, vaccel.EasyCache(0.0, 3)) as handle:
        for _ in range(2):
            assert all(map(torch.equal, generate(case, pipe, 4), plain))
        assert [len(trace.timeline()) for trace in handle.traces] == [6, 4, 6, 4]
