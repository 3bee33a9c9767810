"""The public face on real pipelines: undo, batches, pipelines without context, errors before any forward."""

from __future__ import annotations

import pytest
import tiny
import torch
from diffusers import WanImageToVideoPipeline, WanVideoToVideoPipeline
from PIL import Image

import vaccel

PROMPTS = ["a red cat runs", "a blue dog sleeps"]


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_remove_gives_the_pipeline_back(name, skipping_methods):
    pipe, small = tiny.family(name)
    plain, before = tiny.latents(pipe, steps=20), set(pipe.transformer.__dict__)
    keys = list(pipe.transformer.state_dict())
    for method in skipping_methods:
        handle = vaccel.accelerate(pipe, method, small=small if method.needs_small else None)
        changed = tiny.latents(pipe, steps=20)
        assert not torch.equal(changed, plain), method
        assert list(pipe.transformer.state_dict()) == keys
        handle.remove()
        handle.remove()
        assert torch.equal(tiny.latents(pipe, steps=20), plain)
        assert set(pipe.transformer.__dict__) == before
        assert handle.trace.finished, "the trace outlives the handle"


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
@pytest.mark.parametrize(
    "method",
    [
        vaccel.TeaCache(threshold=0, coefficients=(-1.0, 0.0)),
        vaccel.SRDiffusion(threshold=0),
        vaccel.Schedule(range(20), num_steps=20),
    ],
    ids=lambda m: m.id,
)
@pytest.mark.filterwarnings("ignore:vaccel")
def test_what_never_skips_equals_the_plain_pipeline(name, method):
    pipe, small = tiny.family(name)
    plain = tiny.latents(pipe, steps=20)
    with vaccel.accelerate(pipe, method, small=small if method.needs_small else None) as handle:
        assert torch.equal(tiny.latents(pipe, steps=20), plain)
        assert handle.trace.timeline() == "F" * 20


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_a_run_can_be_replayed(name, skipping_methods):
    pipe, small = tiny.family(name)
    for method in skipping_methods:
        with vaccel.accelerate(pipe, method, small=small if method.needs_small else None) as handle:
            ran = tiny.latents(pipe, steps=20)
            schedule = handle.trace.as_schedule()
        schedule = vaccel.method_from_json(schedule.to_json())
        with vaccel.accelerate(pipe, schedule, small=small if schedule.needs_small else None) as handle:
            assert torch.equal(tiny.latents(pipe, steps=20), ran), method


@pytest.mark.parametrize("reuse", ["blocks", "residual"])
def test_a_batch_under_a_fixed_schedule_is_its_members_alone(wan, reuse):
    with vaccel.accelerate(wan, vaccel.Schedule([0, 1, 4, 8, 11], num_steps=12, reuse=reuse)):
        alone = [tiny.latents(wan, p, seed=i) for i, p in enumerate(PROMPTS)]
        together = tiny.latents(wan, PROMPTS)
    for one, other in zip(alone, together, strict=True):
        assert torch.linalg.vector_norm(one[0] - other) <= 1e-5 * torch.linalg.vector_norm(one)


def test_in_a_batch_the_most_cautious_sample_decides(wan, small):
    method = vaccel.DirectionMagnitude(threshold=0.004)
    with vaccel.accelerate(wan, method, small=small) as handle:
        for i, prompt in enumerate(PROMPTS):
            tiny.latents(wan, prompt, seed=i, steps=30)
        tiny.latents(wan, PROMPTS, steps=30)
        alone, trace = handle.traces[:2], handle.trace
    decided = [s for s in trace.steps if len(s.metrics.get("error", ())) == 2]
    assert decided, "no step had an error of both samples"
    for step in decided:
        worst = max(step.metrics["error"])
        assert step.metrics["error"][step.metrics["decided_by"]] == worst
        assert step.action.letter == ("F" if worst > method.threshold else "m")
    assert trace.calls["large"] // 2 >= max(t.calls["large"] // 2 for t in alone)


def test_image_to_video():
    """Condition channels come with the latents and belong to no residual; the context has a name and nothing else."""
    pipe = WanImageToVideoPipeline(
        tokenizer=tiny.tokenizer(),
        text_encoder=tiny.wan_text_encoder(),
        vae=tiny.wan_vae(),
        transformer=tiny.wan_transformer(in_channels=36),
        scheduler=tiny.unipc(),
        image_encoder=None,
        image_processor=None,
    )
    pipe.set_progress_bar_config(disable=True)
    small = tiny.wan_transformer(7, layers=2, heads=1, in_channels=36)
    image = Image.new("RGB", (32, 32), (200, 30, 30))

    def run():
        generator = torch.Generator().manual_seed(0)
        return pipe(image, "a red cat runs", num_inference_steps=12, generator=generator, **tiny.WAN_CALL).frames

    plain = run()
    for method in (vaccel.DirectionMagnitude(0.005), vaccel.SRDiffusion(0.05)):
        with vaccel.accelerate(pipe, method, small=small) as handle:
            changed = run()
            assert handle.trace.finished
            assert handle.trace.calls["large"] < 24
            assert torch.isfinite(changed).all()
    assert torch.equal(run(), plain)


def test_video_to_video_counts_its_own_steps():
    """Its run starts in the middle of the scheduler's timesteps and sets no context at all."""
    base = tiny.wan_pipeline()
    pipe = WanVideoToVideoPipeline(
        tokenizer=base.tokenizer,
        text_encoder=base.text_encoder,
        vae=base.vae,
        transformer=base.transformer,
        scheduler=tiny.unipc(),
    )
    pipe.set_progress_bar_config(disable=True)
    video = [Image.new("RGB", (32, 32), (10 * i, 0, 90)) for i in range(9)]
    call = {k: v for k, v in tiny.WAN_CALL.items() if k != "num_frames"}

    def run():
        generator = torch.Generator().manual_seed(0)
        return pipe(video, "a red cat runs", num_inference_steps=20, strength=0.5, generator=generator, **call).frames

    plain = run()
    with vaccel.accelerate(pipe, vaccel.Schedule.from_timeline("FFrrFrrFFF")) as handle:
        changed = run()
        assert handle.trace.timeline() == "FFrrFrrFFF"
        assert handle.trace.calls == {"large": 12, "small": 0}
    assert not torch.equal(changed, plain)
    assert torch.equal(run(), plain)


def test_a_transformer_used_outside_the_pipeline_is_left_alone(wan):
    arguments = {
        "hidden_states": torch.randn(1, 16, 3, 4, 4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, 32),
    }
    with torch.no_grad():
        plain = wan.transformer(**arguments).sample
        with vaccel.accelerate(wan, vaccel.Schedule([0], num_steps=12, reuse="residual")) as handle:
            tiny.latents(wan)
            assert torch.equal(wan.transformer(**arguments).sample, plain)
            assert len(handle.traces) == 1


def test_inference_mode_and_no_grad_runs_mix(wan):
    with vaccel.accelerate(wan, vaccel.Schedule([0, 4], num_steps=12, reuse="residual")):
        with torch.inference_mode():
            first = tiny.latents(wan).clone()
        assert torch.equal(tiny.latents(wan), first)


def test_errors_come_before_any_forward(wan, small):
    forwards = []
    hook = wan.transformer.blocks[0].register_forward_pre_hook(lambda *_: forwards.append(1))
    dmd = vaccel.DirectionMagnitude()
    with pytest.raises(ValueError, match="needs the small model"):
        vaccel.accelerate(wan, dmd)
    other = tiny.wan_small()
    other.register_to_config(out_channels=4)
    with pytest.raises(ValueError, match="out_channels is 4"):
        vaccel.accelerate(wan, dmd, small=other)
    with pytest.raises(ValueError, match="must be one of"):
        vaccel.accelerate(wan, dmd, small=tiny.cog_small())
    with pytest.raises(ValueError, match=r"torch\.bfloat16"):
        vaccel.accelerate(wan, dmd, small=tiny.wan_small().to(torch.bfloat16))
    with pytest.raises(ValueError, match="own transformer"):
        vaccel.accelerate(wan, dmd, small=wan.transformer)
    with pytest.raises(ValueError, match="unknown family 'fluxx'"):
        vaccel.accelerate(wan, dmd, small=small, family="fluxx")
    with pytest.raises(ValueError, match="family 'cogvideox' describes CogVideoXTransformer3DModel"):
        vaccel.accelerate(wan, dmd, small=small, family="cogvideox")
    stranger = type("Pipe", (), {"transformer": torch.nn.Linear(1, 1), "scheduler": wan.scheduler})()
    with pytest.raises(ValueError, match="no family describes Linear"):
        vaccel.accelerate(stranger, dmd, small=small)
    with pytest.raises(ValueError, match="no transformer and scheduler"):
        vaccel.accelerate(object(), dmd, small=small)
    with pytest.raises(ValueError, match="must be a vaccel method"):
        vaccel.accelerate(wan, "teacache")
    with pytest.warns(UserWarning, match="ignored"):
        vaccel.accelerate(wan, vaccel.Schedule([0], num_steps=4), small=small).remove()
    handle = vaccel.accelerate(wan, dmd, small=small)
    with pytest.raises(ValueError, match="accelerated already"):
        vaccel.accelerate(wan, dmd, small=small)
    with pytest.raises(RuntimeError, match="no run yet"):
        _ = handle.trace
    with pytest.raises(ValueError, match="1 steps are too few for the interval"):
        tiny.latents(wan, steps=1)
    handle.remove()
    with (
        vaccel.accelerate(wan, vaccel.Schedule([0], num_steps=4)),
        pytest.raises(ValueError, match="for 4 steps, the run has 12"),
    ):
        tiny.latents(wan)
    assert forwards == []
    hook.remove()


def test_cogvideox_small_models_that_do_not_fit():
    rotary, added = tiny.cog_transformer(), tiny.cog_small()
    with pytest.raises(ValueError, match="needs rotary"):
        vaccel.accelerate(tiny.cog_pipeline(transformer=added), vaccel.DirectionMagnitude(), small=rotary)
