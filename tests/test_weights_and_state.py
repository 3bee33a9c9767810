"""Whose weights, whose state: what users do to a pipeline between runs and within one, against a fresh pipeline."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import processes
import pytest
import tiny
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig
from test_ownership import StoppedError, accelerated, methods

import vaccel
from vaccel.cache import buffers

STEPS = 12
ROOT = Path(vaccel.__file__).parent
NAMES = ["latents", "prompt_embeds", "negative_prompt_embeds"]
TWO = ["a red cat runs", "a blue dog sleeps"]
EVERY_LETTER = [vaccel.Schedule.from_timeline("FFbFrFogbFrF"), vaccel.Schedule.from_timeline("FFpFrbgoFFpF")]


def all_methods():
    return [*methods(STEPS), *EVERY_LETTER, vaccel.TeaCache(0.6, (1.0, 0.0)), vaccel.SRDiffusion(0.5)]


def lora(pipe, targets=("to_q", "to_v", "proj_out"), seed=3):
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), init_lora_weights=False)
    pipe.transformer.add_adapter(config)


def fused(pipe):
    lora(pipe, ("to_q", "to_v"))
    pipe.transformer.fuse_lora()


def another_head(pipe):
    torch.manual_seed(4)
    pipe.transformer.proj_out = torch.nn.Linear(32, 64)


def another_block(pipe):
    pipe.transformer.blocks[1] = tiny.wan_transformer(11).blocks[1]


def another_transformer(pipe):
    pipe.transformer = tiny.wan_transformer(12)


def in_bfloat16(pipe):
    pipe.to(torch.bfloat16)


CHANGES = [lora, fused, another_head, another_block, another_transformer, in_bfloat16]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_what_is_done_between_runs_is_seen_by_the_next(change):
    for method in all_methods():
        if method.needs_small and change is in_bfloat16:
            continue
        fresh, pipe = tiny.wan_pipeline(), tiny.wan_pipeline()
        change(fresh)
        with accelerated(fresh, method):
            expected = tiny.latents(fresh)
        with accelerated(pipe, method):
            first = tiny.latents(pipe)
            change(pipe)
            found = tiny.latents(pipe)
        assert torch.equal(found, expected), method
        assert not torch.equal(found, first), method


def test_a_small_model_left_behind_is_named_before_any_step():
    for method in (vaccel.DirectionMagnitude(0.05), vaccel.SRDiffusion(0.5)):
        pipe, small = tiny.wan_pipeline(), tiny.wan_small()
        with vaccel.accelerate(pipe, method, small=small) as handle:
            pipe.to(torch.bfloat16)
            with pytest.raises(ValueError, match=r"the small model is torch\.float32"):
                tiny.latents(pipe)
            assert handle.trace.steps == []
            small.to(torch.bfloat16)
            tiny.latents(pipe)
            assert handle.trace.finished


@pytest.mark.parametrize("name", ["wan", "cogvideox", "qwen-image"])
def test_nothing_unwritten_is_read(name, monkeypatch, skipping_methods):
    """Every fresh buffer is full of NaN, and those of the last run are again when the next begins."""
    pipe, small = tiny.family(name)
    mixed = "FFbFrFogbFrFFFbFrrFF"
    for method in [
        *skipping_methods,
        vaccel.Schedule.from_timeline(mixed),
        vaccel.SRDiffusion(0.05, signal="denoised"),
    ]:
        helper = {"small": small} if method.needs_small else {}
        with vaccel.accelerate(pipe, method, **helper):
            expected = tiny.latents(pipe, steps=20)
        monkeypatch.setattr(buffers, "POISONED", True)
        with vaccel.accelerate(pipe, method, **helper):
            for _ in range(2):
                found = tiny.latents(pipe, steps=20)
                assert torch.isfinite(found).all(), method
                assert torch.equal(found, expected), method
        monkeypatch.setattr(buffers, "POISONED", False)


@pytest.mark.parametrize("method", all_methods(), ids=lambda m: f"{m.id} {getattr(m, 'timeline', '')}")
def test_guidance_that_pauses(method):
    """The other branch comes back at a step that is skipped: what it stored before the pause is too old."""
    pipe = tiny.wan_pipeline()

    def interval(pipe, i, t, kwargs):
        pipe._guidance_scale = 1.0 if 4 <= i + 1 < 8 else 5.0
        return kwargs

    with accelerated(pipe, method) as handle:
        found = tiny.latents(pipe, callback_on_step_end=interval)
        assert handle.trace.finished
        back = handle.trace.steps[8]
        if back.action.letter in "rpm":
            assert back.large == 1
            assert "branch 1 computed in full" in back.reason
        assert torch.isfinite(found).all()


def bigger(pipe, i, t, kwargs):
    if i == 4:
        kwargs["latents"] = torch.nn.functional.interpolate(kwargs["latents"], size=(3, 8, 8))
    return kwargs


def fewer(pipe, i, t, kwargs):
    if i == 4:
        kwargs.update({k: kwargs[k][:1] for k in NAMES})
    return kwargs


@pytest.mark.parametrize(("prompt", "change"), [("a red cat runs", bigger), (TWO, fewer)], ids=["bigger", "fewer"])
def test_a_shape_that_changes_in_the_middle(prompt, change):
    def run(pipe):
        return tiny.latents(pipe, prompt, callback_on_step_end=change, callback_on_step_end_tensor_inputs=NAMES)

    pipe = tiny.wan_pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    plain = run(pipe)
    recorded = vaccel.methods.Recording()
    for method in [*all_methods(), vaccel.SRDiffusion(0.5, signal="latents"), recorded]:
        with accelerated(pipe, method) as handle:
            found = run(pipe)
            assert found.shape == plain.shape, method
            assert torch.isfinite(found).all(), method
            assert handle.trace.steps[5].action.letter in "Fs", "nothing that is stored fits"
    assert handle.trace.delivered is None
    assert any("changed their shape" in note for note in handle.trace.notes)


def sde():
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="sde-dpmsolver++"
    )


@pytest.mark.parametrize("scheduler", [sde, lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)])
def test_a_stochastic_scheduler_draws_what_it_would_without(scheduler):
    def run(pipe):
        torch.manual_seed(7)
        return tiny.latents(pipe), torch.rand(())

    plain, drawn = run(tiny.wan_pipeline(scheduler=scheduler()))
    for method in (vaccel.Forecast(range(STEPS), STEPS), vaccel.Schedule(range(STEPS), num_steps=STEPS)):
        pipe = tiny.wan_pipeline(scheduler=scheduler())
        with vaccel.accelerate(pipe, method):
            found, after = run(pipe)
        assert torch.equal(found, plain)
        assert torch.equal(after, drawn), "torch's own stream is where it would be"


def adapted_pipeline():
    pipe = tiny.wan_pipeline()
    lora(pipe, ("to_q", "to_v"))
    return pipe


def generate(pipe, number):
    """A request of a long-lived server: prompt, size, steps, guidance, LoRA scale and method of its own."""
    steps = (4, 6, 5)[number % 3]
    kinds = [
        vaccel.Schedule([0, 1, 3], num_steps=steps), vaccel.Forecast((0, 1, 3), steps),
        vaccel.MixCache(theta=1.0, d1=0.3, d2=0.6, cfg_impact=0.1), vaccel.EasyCache(0.5, 1),
    ]  # fmt: skip
    pipe.transformer.set_adapters(["default"], [(0.0, 0.5, 1.0)[number // 5 % 3]])
    arguments = {"height": (32, 48)[number // 2 % 2], "guidance": (1.0, 5.0)[number // 3 % 2], "steps": steps}

    def stop(pipe, i, t, kwargs):
        if number % 10 == 9 and i == 2:
            raise StoppedError
        return kwargs

    with vaccel.accelerate(pipe, kinds[number % 4]):
        try:
            return tiny.latents(pipe, TWO[number % 2], seed=number, callback_on_step_end=stop, **arguments)
        except StoppedError:
            return None


def in_a_fresh_process(number, path):
    torch.save(generate(adapted_pipeline(), number), path)


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_two_hundred_generations(tmp_path):
    """Everything changes from one to the next and every tenth is aborted: memory stays, and the last is what it is in a
    process of its own."""
    pipe, held, residents = adapted_pipeline(), [], []
    tracemalloc.start()
    for number in range(200):
        made = generate(pipe, number)
        if number == 198:
            found = made
        if number in (19, 79, 139, 199):
            gc.collect()
            ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{ROOT}/*")])
            held.append(sum(trace.size for trace in ours.traces))  # the test runner's own are in no one's hand
            residents.append(resident())
    tracemalloc.stop()
    assert held[-1] - held[0] < 20_000, held
    assert residents[-1] - residents[1] < 16 * 2**20, residents
    processes.finish(processes.start(in_a_fresh_process, 198, tmp_path / "alone.pt"))
    assert torch.equal(torch.load(tmp_path / "alone.pt"), found)
