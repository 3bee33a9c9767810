"""Qwen-Image: its own loop written out, its views, its guidance, the tokens of an image that is edited."""

from __future__ import annotations

import math

import oracle
import oracle_caching
import oracle_models
import pytest
import tiny
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image
from torch import Tensor

import vaccel
from vaccel.integrations.diffusers.ownership import CURRENT
from vaccel.models import QwenImage
from vaccel.models.transformer import Transformer

ONE = "a red cat runs"
TWO = ["a red cat runs", "blue dog"]  # of two lengths: the texts come with a mask
STEPS = 12
TIMELINE = "FFrrFrFrrrFF"
SEED = 11

prompts = pytest.mark.parametrize("prompt", [ONE, TWO], ids=["one", "two"])
guidances = pytest.mark.parametrize("guidance", [4.0, 1.0], ids=["cfg", "no-cfg"])
reuses = pytest.mark.parametrize("reuse", ["blocks", "residual"])


# --- the loop, from the pipeline's description ----------------------------------------------------------------------


@torch.no_grad()
def qwen_task(prompt: str | list[str], guidance: float, steps: int, negative: str | list[str] = "") -> oracle.Task:
    """The run that ``tiny.latents`` starts, up to its loop, on modules of its own."""
    pipe = tiny.qwen_pipeline()
    size = (tiny.QWEN_CALL["height"] // 4, tiny.QWEN_CALL["width"] // 4)
    batch = len(prompt) if isinstance(prompt, list) else 1
    image = (1, size[0] // 2, size[1] // 2)
    x = torch.cat([torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(SEED + i)) for i in range(batch)])
    x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 1, 3, 5).reshape(batch, image[1] * image[2], 16)
    return oracle.Task(
        large=pipe.transformer,
        scheduler=oracle.QwenEuler(x.shape[1]),
        latents=x,
        cond=pipe.encode_prompt(prompt),
        uncond=pipe.encode_prompt(negative or [""] * batch) if guidance > 1 else None,
        guidance=guidance,
        steps=steps,
        rescaled=True,
        image=image,
    )


def loop(prompt: str | list[str], guidance: float, timeline: str = "F" * STEPS, reuse: str = "blocks") -> Tensor:
    """The latents of the run that ``tiny.latents`` starts; on steps "r" the last computed residual is reused."""
    task = qwen_task(prompt, guidance, len(timeline))
    made = oracle_caching.scheduled(task, [i for i, letter in enumerate(timeline) if letter == "F"], reuse)
    assert made.timeline == timeline
    return made.latents


def run(pipe, prompt: str | list[str], guidance: float = 4.0, **kwargs) -> Tensor:
    return tiny.latents(pipe, prompt, steps=STEPS, seed=SEED, guidance=guidance, **kwargs)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().norm() / b.double().norm())


@prompts
@guidances
def test_the_loop_is_the_pipeline(prompt, guidance):
    assert distance(loop(prompt, guidance), run(tiny.qwen_pipeline(), prompt, guidance)) < 1e-5


@prompts
@guidances
@reuses
def test_schedules_are_the_loop(prompt, guidance, reuse):
    pipe = tiny.qwen_pipeline()
    with vaccel.accelerate(pipe, vaccel.Schedule.from_timeline(TIMELINE, reuse=reuse)) as handle:
        actual = run(pipe, prompt, guidance)
        assert handle.trace.timeline() == TIMELINE
        assert handle.trace.calls == {"large": TIMELINE.count("F") * (1 + (guidance > 1)), "small": 0}
    assert distance(actual, loop(prompt, guidance, TIMELINE, reuse)) < 1e-5
    assert distance(actual, run(pipe, prompt, guidance)) > 1e-4, "reuse should change something"


@prompts
@guidances
def test_computed_in_full_it_is_the_pipeline_and_removed_too(prompt, guidance):
    pipe = tiny.qwen_pipeline()
    plain, before = run(pipe, prompt, guidance), set(pipe.transformer.__dict__)
    with vaccel.accelerate(pipe, vaccel.Schedule(range(STEPS), num_steps=STEPS)):
        assert torch.equal(run(pipe, prompt, guidance), plain)
    handle = vaccel.accelerate(pipe, vaccel.Schedule.from_timeline(TIMELINE))
    assert not torch.equal(run(pipe, prompt, guidance), plain)
    handle.remove()
    assert torch.equal(run(pipe, prompt, guidance), plain)
    assert set(pipe.transformer.__dict__) == before


# --- views ----------------------------------------------------------------------------------------------------------


def call(*, rows: int = 2, others: tuple = (), **kwargs) -> dict:
    """Arguments of a call for ``rows`` images of 6 tokens, and for ``others`` that are given."""
    torch.manual_seed(3)
    shapes = [(1, 2, 3), *others]
    tokens = sum(math.prod(shape) for shape in shapes)
    arguments = {
        "hidden_states": torch.randn(rows, tokens, 16),
        "encoder_hidden_states": torch.randn(rows, 5, 16),
        "encoder_hidden_states_mask": torch.tensor([[1, 1, 1, 0, 0]] * rows),
        "timestep": torch.full((rows,), 0.7),
        "img_shapes": [shapes] * rows,
        "return_dict": False,
    }
    return arguments | kwargs


@torch.no_grad()
def test_views_are_the_forward():
    model, inputs = tiny.qwen_transformer(), call()
    transformer, buffer = Transformer(model, QwenImage()), torch.empty(2, 6, 32)
    x, text, mask, t = (inputs[k] for k in list(inputs)[:4])
    plain, residual = oracle_models.qwen_forward(model, x, torch.tensor(700.0), (text, mask), (1, 2, 3), None)
    assert torch.equal(model(**inputs)[0], plain)
    assert torch.equal(transformer.full(inputs), plain)
    assert torch.equal(transformer.recording(inputs, buffer, {}), plain)
    assert torch.equal(buffer, residual)
    later = {**inputs, "hidden_states": x.flip(1), "timestep": t / 2}
    expected, _ = oracle_models.qwen_forward(model, x.flip(1), torch.tensor(350.0), (text, mask), (1, 2, 3), residual)
    assert torch.equal(transformer.reusing(later, buffer), expected)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@torch.no_grad()
def test_a_controlnets_residuals_are_added_once(samples):
    inputs = call(controlnet_block_samples=list(torch.randn(samples, 2, 6, 32)))
    inputs["img_shapes"] = [shapes[0] for shapes in inputs["img_shapes"]]  # as its pipelines pass them
    transformer, buffer = Transformer(tiny.qwen_transformer(), QwenImage()), torch.empty(2, 6, 32)
    plain = transformer.full(inputs)
    assert torch.equal(transformer.recording(inputs, buffer, {}), plain)
    assert distance(transformer.reusing(inputs, buffer), plain) < 1e-6


@pytest.mark.parametrize(
    ("config", "extra", "noisy"),
    [
        ({}, {}, 6),
        ({"zero_cond_t": True}, {}, 6),
        ({"use_layer3d_rope": True, "use_additional_t_cond": True}, {"additional_t_cond": torch.tensor([0, 1])}, 10),
    ],
    ids=["edit", "edit-2511", "layered"],
)
@torch.no_grad()
def test_condition_tokens_are_cut_off(config, extra, noisy):
    model, inputs = tiny.qwen_transformer(**config), call(others=((1, 2, 2), (1, 1, 3)), **extra)
    transformer, buffer = Transformer(model, QwenImage()), torch.empty(2, 13, 32)
    assert torch.equal(transformer.latents(inputs), inputs["hidden_states"][:, :noisy])
    plain = model(**inputs)[0][:, :noisy]
    assert torch.equal(transformer.full(inputs), plain)
    assert torch.equal(transformer.recording(inputs, buffer, {}), plain)
    assert distance(transformer.reusing(inputs, buffer), plain) < 1e-6
    assert transformer.modulation(inputs, False).shape == (2, 32)


def test_an_edit_pipeline(monkeypatch):
    # It takes every image to a megapixel first.
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: (48, 32, None))
    pipe = pipeline_qwenimage_edit.QwenImageEditPipeline(
        scheduler=tiny.qwen_scheduler(),
        vae=tiny.qwen_vae(),
        text_encoder=None,
        tokenizer=None,
        processor=None,
        transformer=tiny.qwen_transformer(),
    )
    pipe.set_progress_bar_config(disable=True)
    text = torch.randn(2, 2, 5, 16, generator=torch.Generator().manual_seed(1))

    def edit() -> Tensor:
        return pipe(
            Image.new("RGB", (64, 64), (200, 30, 30)),
            prompt_embeds=text[0],
            negative_prompt_embeds=text[1],
            height=32,
            width=32,
            num_inference_steps=6,
            generator=[torch.Generator().manual_seed(i) for i in range(2)],
            output_type="latent",
        ).images

    plain = edit()
    with vaccel.accelerate(pipe, vaccel.Schedule(range(6), num_steps=6, reuse="residual")):
        assert torch.equal(edit(), plain)
    for reuse, nbytes in (("blocks", 2 * 2 * (16 + 24) * 32 * 4), ("residual", 2 * 2 * 16 * 16 * 4)):
        with vaccel.accelerate(pipe, vaccel.Schedule.from_timeline("FFrrFr", reuse=reuse)) as handle:
            changed = edit()
            assert handle.trace.calls == {"large": 6, "small": 0}
            assert handle.nbytes == nbytes
        assert changed.shape == plain.shape == (2, 16, 16)
        assert 0 < distance(changed, plain) < 1
    assert torch.equal(edit(), plain)


# --- guidance and timesteps -----------------------------------------------------------------------------------------


def test_guided_is_the_pipelines():
    c, u = torch.randn(2, 2, 24, 16, generator=torch.Generator().manual_seed(2))
    combined = u + 4.0 * (c - u)
    expected = combined * (torch.norm(c, dim=-1, keepdim=True) / torch.norm(combined, dim=-1, keepdim=True))
    assert torch.equal(QwenImage().guided(c, u, 4.0), expected)
    out = torch.empty_like(c)
    assert QwenImage().guided(c, u, 4.0, out=out) is out
    assert torch.equal(out, expected)
    half = QwenImage().guided(c.bfloat16(), u.bfloat16(), 4.0)
    assert half.dtype == torch.bfloat16
    assert distance(half.float(), expected) < 2**-7


def test_the_guidance_scale_is_that_of_the_running_call():
    """Two pipelines, the one called within the other's call: each scope has its own call's arguments."""
    pipe, other, seen = tiny.qwen_pipeline(), tiny.qwen_pipeline(), []

    def look(*_):
        seen.append(CURRENT.get()._guidance(0))

    def in_between(_, step, t, tensors):
        if step == 0:
            run(pipe, ONE, 2.5)
        return {}

    for one in (pipe, other):
        one.transformer.img_in.register_forward_hook(look)

    method = vaccel.Schedule(range(STEPS), num_steps=STEPS)
    with vaccel.accelerate(pipe, method), vaccel.accelerate(other, method):
        run(other, ONE, 4.0, callback_on_step_end=in_between)
    assert seen == [4.0] * 2 + [2.5] * 2 * STEPS + [4.0] * 2 * (STEPS - 1)
    assert CURRENT.get() is None
    with pytest.raises(ValueError, match="none is running"):
        QwenImage().guidance(pipe, 0, {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modulations_are_those_of_the_calls(dtype):
    """Rounded elsewhere, a timestep in bf16 is another one: no tolerance hides that."""
    pipe, family, calls = tiny.qwen_pipeline().to(dtype), QwenImage(), []
    hook = pipe.transformer.register_forward_pre_hook(lambda m, a, kwargs: calls.append(kwargs), with_kwargs=True)
    run(pipe, TWO, 1.0)
    hook.remove()
    with torch.no_grad():
        each = torch.stack([family.modulation(pipe.transformer, c, False)[0] for c in calls])
        every = family.modulations(pipe.transformer, calls[0], pipe.scheduler.timesteps, False)
    assert distance(every, each) < (1e-6 if dtype == torch.float32 else 2**-7)


def test_steps_are_found_without_a_sync(monkeypatch):
    pipe = tiny.qwen_pipeline()
    with vaccel.accelerate(pipe, vaccel.Schedule.from_timeline(TIMELINE)) as handle:
        monkeypatch.setattr(Tensor, "nonzero", lambda *_: pytest.fail("looked for by value"))
        run(pipe, ONE)
        run(pipe, TWO, 1.0)
        assert [t.timeline() for t in handle.traces] == [TIMELINE] * 2


# --- methods --------------------------------------------------------------------------------------------------------


@prompts
def test_teacache(prompt):
    pipe = tiny.qwen_pipeline()
    with vaccel.accelerate(pipe, vaccel.TeaCache(threshold=0.6, coefficients=(1.0, 0.0))) as handle:
        actual, trace = run(pipe, prompt), handle.trace
    assert set(trace.timeline()) == {"F", "r"}
    assert trace.finished
    assert distance(actual, loop(prompt, 4.0, trace.timeline())) < 1e-5


def test_teacache_in_retention_mode_is_refused_before_any_forward():
    pipe, forwards = tiny.qwen_pipeline(), []
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: forwards.append(1))
    method = vaccel.TeaCache(threshold=0.6, coefficients=(1.0, 0.0), retention=True)
    with vaccel.accelerate(pipe, method), pytest.raises(ValueError, match="retention=False"):
        run(pipe, ONE)
    assert not forwards


@pytest.mark.parametrize(
    ("method", "letters"),
    [
        (vaccel.DirectionMagnitude(threshold=0.05), "Fms"),
        (vaccel.SRDiffusion(threshold=0.05), "Fs"),
        (vaccel.SRDiffusion(threshold=0.05, signal="denoised"), "Fs"),
    ],
    ids=["direction-magnitude", "srdiffusion", "srdiffusion-denoised"],
)
@prompts
def test_methods_with_a_small_model(method, letters, prompt):
    pipe, small = tiny.qwen_pipeline(), tiny.qwen_small()
    plain = run(pipe, prompt)
    with vaccel.accelerate(pipe, method, small=small) as handle:
        changed = run(pipe, prompt)
        assert set(handle.trace.timeline()) == set(letters)
        assert handle.trace.finished
    assert torch.isfinite(changed).all()
    assert torch.equal(run(pipe, prompt), plain)


def test_a_small_model_with_other_texts_does_not_fit():
    other = tiny.qwen_small()
    other.register_to_config(joint_attention_dim=8)
    with pytest.raises(ValueError, match="joint_attention_dim is 8"):
        vaccel.accelerate(tiny.qwen_pipeline(), vaccel.DirectionMagnitude(), small=other)
