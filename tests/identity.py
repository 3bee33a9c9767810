"""Whether an accelerated run still makes the same bits: digests of latents and traces, recorded once, checked after.

    PYTHONPATH=CHECKOUT:CHECKOUT/kernels python tests/identity.py record FILE [-k SUBSTRING]
    PYTHONPATH=CHECKOUT:CHECKOUT/kernels python tests/identity.py check FILE [-k SUBSTRING]

Through the public API alone, so that it says the same of any version of what lies beneath.  A case is one or more runs;
of each it keeps the digest of everything (final latents, timeline, forwards, every step's action, metrics and forwards)
and parts of it by which differences can be told apart.  Times and what is said in words are no part of it.  Bits depend
on the machine and on torch: ``check`` says where those are others than when the file was recorded.

``record -k`` replaces the cases it names in a file that is there.  ``check`` exits with 1 if anything differs; cases
that raised when they were recorded are listed and not run.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import accelerate as hf_accelerate
import diffusers
import numpy as np
import tiny
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    CogVideoXVideoToVideoPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    QwenImageImg2ImgPipeline,
    WanImageToVideoPipeline,
    WanVideoToVideoPipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image

import vaccel
import vaccel.demo

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = Path(vaccel.__file__).resolve().parent / "demo" / "weights"

STEPS = 20
PROMPTS = ["a red cat runs", "a blue dog sleeps"]
QWEN_PROMPTS = ["a red cat runs", "blue dog"]  # of two lengths: the texts come with a mask
CAPTIONS = [
    "a green cross moves down quickly on a striped background",
    "a purple cross moves right quickly and a white triangle moves down quickly on a dark background",
]


class Form(NamedTuple):
    """How the pipeline is called: the guidance scale, and how many prompts at once."""

    guidance: float
    prompts: int


FORMS = {"cfg": Form(5.0, 1), "plain": Form(1.0, 1), "cfg-2": Form(5.0, 2), "plain-2": Form(1.0, 2)}


class Made(NamedTuple):
    """A run: what came out (None where it was aborted), and its trace (None for a plain pipeline's)."""

    latents: torch.Tensor | None
    trace: vaccel.Trace | None


# --- pipelines ------------------------------------------------------------------------------------------------------


def flow_dpm() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )


def cog_dpm() -> CogVideoXDPMScheduler:
    return CogVideoXDPMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )


def cog_early() -> Any:
    """The large moves come first, as SRDiffusion's signal "latents" needs."""
    return type(tiny.cog_pipeline().scheduler)(prediction_type="v_prediction", snr_shift_scale=0.3)


def two_transformers() -> Any:
    return tiny.wan_pipeline(transformer_2=tiny.wan_transformer(9), boundary_ratio=0.7)


def tokenwise() -> Any:
    """Like Wan 2.2 TI2V: a timestep for every token."""
    return tiny.wan_pipeline(expand_timesteps=True)


def other_pipeline(kind: type, base: Any, **parts: Any) -> Any:
    """A pipeline of another class with the parts of one that is there."""
    names = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")
    pipe = kind(**{n: getattr(base, n) for n in names} | parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_to_video() -> Any:
    transformer = tiny.wan_transformer(in_channels=36)
    return other_pipeline(
        WanImageToVideoPipeline, tiny.wan_pipeline(transformer=transformer), image_encoder=None, image_processor=None
    )


def qwen_other(kind: type) -> Any:
    base = tiny.qwen_pipeline()
    pipe = other_pipeline(kind, base)
    pipe.prompt_template_encode = base.prompt_template_encode
    pipe.prompt_template_encode_start_idx = base.prompt_template_encode_start_idx
    return pipe


def edit(**config: Any) -> Any:
    # It takes every image to a megapixel first.
    pipeline_qwenimage_edit.calculate_dimensions = lambda area, ratio: (48, 32, None)
    pipe = pipeline_qwenimage_edit.QwenImageEditPipeline(
        scheduler=tiny.qwen_scheduler(),
        vae=tiny.qwen_vae(),
        text_encoder=None,
        tokenizer=None,
        processor=None,
        transformer=tiny.qwen_transformer(**config),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def longer_patches() -> Any:
    """Like CogVideoX 1.5: patches of two frames."""
    transformer = tiny.cog_transformer()
    config = {k: v for k, v in transformer.config.items() if not k.startswith("_")}
    torch.manual_seed(0)
    return tiny.cog_pipeline(transformer=type(transformer)(**{**config, "patch_size_t": 2}).eval())


def half(pipe: Any) -> Any:
    return pipe.to(torch.bfloat16)


def prompt_of(pipe: Any, form: Form) -> str | list[str]:
    prompts = QWEN_PROMPTS if type(pipe).__name__.startswith("QwenImage") else PROMPTS
    return prompts[0] if form.prompts == 1 else prompts[: form.prompts]


def generators(form: Form, seed: int) -> Any:
    made = [torch.Generator().manual_seed(seed + i) for i in range(form.prompts)]
    return made[0] if form.prompts == 1 else made


def sample(pipe: Any, form: Form, *, steps: int = STEPS, seed: int = 0, prompt: Any = None, **kwargs: Any) -> Any:
    prompt = prompt_of(pipe, form) if prompt is None else prompt
    return tiny.latents(pipe, prompt, steps=steps, seed=seed, guidance=form.guidance, **kwargs)


def sample_two(pipe: Any, form: Form, **kwargs: Any) -> Any:
    return sample(pipe, form, guidance_scale_2=3.0 if form.guidance > 1 else 1.0, **kwargs)


def sample_dynamic(pipe: Any, form: Form, **kwargs: Any) -> Any:
    return sample(pipe, form, use_dynamic_cfg=True, **kwargs)


def sample_on_and_off(pipe: Any, form: Form, **kwargs: Any) -> Any:
    """Guidance pauses in the middle of the run."""

    def switch(pipe: Any, i: int, t: Any, tensors: dict) -> dict:
        pipe._guidance_scale = 1.0 if 4 <= i < 10 else form.guidance
        return tensors

    return sample(pipe, form, callback_on_step_end=switch, **kwargs)


def sample_late(pipe: Any, form: Form, **kwargs: Any) -> Any:
    """Guidance is on from the eighth step on alone."""

    def switch(pipe: Any, i: int, t: Any, tensors: dict) -> dict:
        pipe._guidance_scale = 1.0 if i < 7 else form.guidance
        return tensors

    text = torch.randn(form.prompts, 8, 32, generator=torch.Generator().manual_seed(3))
    return sample(pipe, Form(1.0, form.prompts), negative_prompt_embeds=text, callback_on_step_end=switch, **kwargs)


def sample_image(pipe: Any, form: Form, *, steps: int = STEPS, seed: int = 0, **kwargs: Any) -> Any:
    image = Image.new("RGB", (32, 32), (200, 30, 30))
    call = {**tiny.WAN_CALL, "guidance_scale": form.guidance, **kwargs}
    return pipe(
        image, prompt_of(pipe, form), num_inference_steps=steps, generator=generators(form, seed), **call
    ).frames


def sample_video(pipe: Any, form: Form, *, steps: int = STEPS, seed: int = 0, **kwargs: Any) -> Any:
    """From the middle of the scheduler's timesteps: ``steps`` of twice as many."""
    cog = isinstance(pipe, CogVideoXVideoToVideoPipeline)
    side, base = (64, tiny.COG_CALL) if cog else (32, tiny.WAN_CALL)
    video = [Image.new("RGB", (side, side), (10 * i, 0, 90)) for i in range(9)]
    call = {k: v for k, v in base.items() if k != "num_frames"} | {"guidance_scale": form.guidance, **kwargs}
    prompt, generator = prompt_of(pipe, form), generators(Form(form.guidance, 1), seed)
    return pipe(video, prompt, num_inference_steps=2 * steps, strength=0.5, generator=generator, **call).frames


def sample_again(pipe: Any, form: Form, *, steps: int = STEPS, seed: int = 0, **kwargs: Any) -> Any:
    """Qwen-Image from an image, from the middle of the timesteps."""
    image = Image.new("RGB", (48, 32), (200, 30, 30))
    negative = "" if form.prompts == 1 else [""] * form.prompts
    call = {**tiny.QWEN_CALL, "true_cfg_scale": form.guidance, **kwargs}
    if form.guidance > 1:
        call["negative_prompt"] = negative
    return pipe(
        prompt_of(pipe, form), image=image, num_inference_steps=2 * steps, strength=0.5,
        generator=generators(form, seed), **call,
    ).images  # fmt: skip


def sample_edit(pipe: Any, form: Form, *, steps: int = STEPS, seed: int = 0, **kwargs: Any) -> Any:
    text = torch.randn(2, form.prompts, 5, 16, generator=torch.Generator().manual_seed(1))
    negative = {"negative_prompt_embeds": text[1]} if form.guidance > 1 else {}
    return pipe(
        Image.new("RGB", (64, 64), (200, 30, 30)), prompt_embeds=text[0], true_cfg_scale=form.guidance, height=32,
        width=32, num_inference_steps=steps, generator=generators(form, seed), output_type="latent",
        **negative, **kwargs,
    ).images  # fmt: skip


class Setup(NamedTuple):
    """A pipeline, the small model (or two) beside it, and how it is called."""

    family: str
    pipe: Callable[[], Any]
    small: Callable[[], Any]
    sample: Callable[..., Any] = sample


def wan(make: Callable[[], Any], call: Callable[..., Any] = sample, small: Callable[[], Any] = tiny.wan_small) -> Setup:
    return Setup("wan", make, small, call)


def cog(make: Callable[[], Any], call: Callable[..., Any] = sample, small: Callable[[], Any] = tiny.cog_small) -> Setup:
    return Setup("cogvideox", make, small, call)


def qwen(make: Callable[[], Any], call: Callable[..., Any] = sample) -> Setup:
    return Setup("qwen-image", make, tiny.qwen_small, call)


SETUPS = {
    "wan": wan(tiny.wan_pipeline),
    "wan-euler": wan(lambda: tiny.wan_pipeline(FlowMatchEulerDiscreteScheduler(shift=3.0))),
    "wan-dpm": wan(lambda: tiny.wan_pipeline(flow_dpm())),
    "wan-epsilon": wan(lambda: tiny.wan_pipeline(DPMSolverMultistepScheduler())),
    "wan-early": wan(lambda: tiny.wan_pipeline(tiny.unipc(0.2))),
    "wan-two": wan(two_transformers, sample_two),
    "wan-two-two": wan(two_transformers, sample_two, lambda: [tiny.wan_small(), tiny.wan_small(8)]),
    "wan-tokenwise": wan(tokenwise),
    "wan-i2v": wan(image_to_video, sample_image, lambda: tiny.wan_transformer(7, layers=2, heads=1, in_channels=36)),
    "wan-v2v": wan(lambda: other_pipeline(WanVideoToVideoPipeline, tiny.wan_pipeline()), sample_video),
    "wan-on-off": wan(tiny.wan_pipeline, sample_on_and_off),
    "wan-late": wan(tiny.wan_pipeline, sample_late),
    "wan-bf16": wan(lambda: half(tiny.wan_pipeline()), small=lambda: tiny.wan_small().to(torch.bfloat16)),
    "cogvideox": cog(tiny.cog_pipeline),
    "cogvideox-added": cog(lambda: tiny.cog_pipeline(transformer=tiny.cog_transformer(rotary=False))),
    "cogvideox-rotary-small": cog(tiny.cog_pipeline, small=lambda: tiny.cog_transformer(7, layers=1)),
    "cogvideox-deep": cog(lambda: tiny.cog_pipeline(transformer=tiny.cog_transformer(layers=4))),
    "cogvideox-dpm": cog(lambda: tiny.cog_pipeline(cog_dpm())),
    "cogvideox-early": cog(lambda: tiny.cog_pipeline(cog_early())),
    "cogvideox-dynamic": cog(tiny.cog_pipeline, sample_dynamic),
    "cogvideox-1.5": cog(longer_patches),
    "cogvideox-v2v": cog(lambda: other_pipeline(CogVideoXVideoToVideoPipeline, tiny.cog_pipeline()), sample_video),
    "cogvideox-bf16": cog(lambda: half(tiny.cog_pipeline()), small=lambda: tiny.cog_small().to(torch.bfloat16)),
    "qwen-image": qwen(tiny.qwen_pipeline),
    "qwen-image-again": qwen(lambda: qwen_other(QwenImageImg2ImgPipeline), sample_again),
    "qwen-image-edit": qwen(edit, sample_edit),
    "qwen-image-edit-2511": qwen(lambda: edit(zero_cond_t=True), sample_edit),
    "qwen-image-bf16": Setup(
        "qwen-image", lambda: half(tiny.qwen_pipeline()), lambda: tiny.qwen_small().to(torch.bfloat16)
    ),
}
FAMILIES = ("wan", "cogvideox", "qwen-image")
DEPTH = {"wan": 4, "cogvideox": 2, "qwen-image": 4}
CHANNELS = {"wan": 16, "cogvideox": 4, "qwen-image": 16}


# --- methods: by name, made from the family and the number of steps --------------------------------------------------

LINE = (1.0, 0.0)
FULL = (0, 1, 2, 6, 10, 19)
MIX = {"theta": 1.0, "d1": 0.3, "d2": 0.6, "cfg_impact": 0.1}
QWEN_MIX = {"theta": 1.0, "d1": 0.107, "d2": 0.13, "cfg_impact": 0.1}

Maker = Callable[[str], vaccel.Method]


def dm(**fields: Any) -> Maker:
    return lambda family: vaccel.DirectionMagnitude(
        **{"threshold": 0.05 if family == "qwen-image" else 0.005, **fields}
    )


def sr(**fields: Any) -> Maker:
    return lambda family: vaccel.SRDiffusion(**{"threshold": 0.05, **fields})


def tea(**fields: Any) -> Maker:
    return lambda family: vaccel.TeaCache(**{"threshold": 0.6, "coefficients": LINE, **fields})


def mix(**fields: Any) -> Maker:
    def make(family: str) -> vaccel.Method:
        given = {**(QWEN_MIX if family == "qwen-image" else MIX), **fields}
        if given.get("block_impacts"):
            depth = 3 if DEPTH[family] == 4 else 2  # the candidates at quarters of the depth
            given["block_impacts"] = given["block_impacts"][:depth]
        return vaccel.MixCache(**given)

    return make


def scheduled(reuse: str, full: Iterable[int] = FULL) -> Maker:
    return lambda family: vaccel.Schedule(full, num_steps=STEPS, reuse=reuse)


def letters(timeline: str, reuse: str = "blocks") -> Maker:
    return lambda family: vaccel.Schedule.from_timeline(timeline, reuse=reuse)


def planned(plan: Callable[[str], list]) -> Maker:
    """A schedule of actions as plain data, one a step: letters, or letters with fields."""

    def make(family: str) -> vaccel.Method:
        actions = [{"action": a} if isinstance(a, str) else a for a in plan(family)]
        return vaccel.method_from_json({"method": "schedule", "actions": actions})

    return make


def lemica(**fields: Any) -> Maker:
    return lambda family: vaccel.LeMiCa(FULL, STEPS, **fields)


def forecast(full: Iterable[int] = FULL, **fields: Any) -> Maker:
    return lambda family: vaccel.Forecast(tuple(full), STEPS, **fields)


def fixed(method: Callable[[], vaccel.Method]) -> Maker:
    return lambda family: method()


#: As tests/conftest.py has them.
SKIPPING: dict[str, Maker] = {
    "dm": dm(),
    "sr": sr(),
    "sr-tea": sr(rendering=vaccel.TeaCache(threshold=0.5, coefficients=LINE)),
    "tea": tea(),
    "schedule-blocks": scheduled("blocks", [0, 1, 2, 6, 10, 19]),
    "schedule-residual": scheduled("residual", [0, 1, 2, 6, 10, 19]),
    "lemica": lemica(),
    "mix": mix(),
    "mix-both": mix(block_branches="both"),
    "forecast": forecast(),
}

IMPACTS = tuple(tuple(0.5 if i // 3 % 4 == k else 2.0 for i in range(STEPS)) for k in (1, 2, 3))
VARIANTS: dict[str, Maker] = {
    "dm-cached": dm(magnitude="cached"),
    "dm-projection": dm(magnitude="projection"),
    "dm-both": dm(cfg_reuse=False),
    "dm-cached-both": dm(magnitude="cached", cfg_reuse=False),
    "dm-projection-both": dm(magnitude="projection", cfg_reuse=False),
    "dm-interval": dm(first=0.1, last=0.8),
    "dm-whole": dm(first=0.05, last=1.0, threshold=0.02),
    "dm-zero": dm(threshold=0.0),
    "sr-denoised": sr(signal="denoised"),
    "sr-latents": sr(signal="latents"),
    "sr-fixed": sr(fix_steps=9),
    "sr-never": sr(threshold=0.0),
    "sr-tea-denoised": sr(signal="denoised", rendering=vaccel.TeaCache(threshold=0.5, coefficients=LINE)),
    "sr-tea-retention": sr(rendering=vaccel.TeaCache(threshold=0.5, coefficients=LINE, retention=True)),
    "tea-retention": tea(retention=True),
    "tea-warmup": tea(warmup=6, threshold=0.9),
    "tea-curved": tea(coefficients=(-0.5, 0.6, 0.01), threshold=0.6),
    "tea-zero": tea(threshold=0.0),
    "mix-step": mix(levels=("step",)),
    "mix-cfg": mix(levels=("cfg",)),
    "mix-block": mix(levels=("block",)),
    "mix-step-cfg": mix(levels=("step", "cfg")),
    "mix-cfg-block": mix(levels=("cfg", "block")),
    "mix-step-block-both": mix(levels=("step", "block"), block_branches="both"),
    "mix-step-unbarred": mix(levels=("step",), penalty=False),
    "mix-cfg-unbarred": mix(levels=("cfg",), penalty=False),
    "mix-block-unbarred": mix(levels=("block",), penalty=False),
    "mix-block-both-unbarred": mix(levels=("block",), penalty=False, block_branches="both"),
    "mix-unbarred-eff": mix(penalty=False, intervals="eff"),
    "mix-interval": mix(interval=4),
    "mix-interval-both-unbarred": mix(interval=5, penalty=False, block_branches="both"),
    "mix-own-intervals": mix(intervals=(6, 3, 1)),
    "mix-candidates": mix(candidates=(0, 1)),
    "mix-candidate-both": mix(candidates=(1,), block_branches="both", levels=("block",)),
    "mix-impacts": mix(block_impacts=IMPACTS, step_impact=0.8, cfg_impact=1.8),
    "mix-impacts-both": mix(block_impacts=IMPACTS, step_impact=0.9, cfg_impact=0.5, block_branches="both"),
    "mix-defaults": fixed(vaccel.MixCache),
    "mix-zero": mix(theta=0.0),
    "schedule-output": scheduled("output"),
    "schedule-forecast": scheduled("forecast"),
    "schedule-all": scheduled("residual", range(STEPS)),
    "schedule-one": scheduled("residual", [0]),
    "lemica-residual": lemica(reuse="residual"),
    "lemica-output": lemica(reuse="output"),
    "lemica-forecast": lemica(reuse="forecast"),
    "forecast-order-1": forecast(order=1),
    "forecast-order-3": forecast(order=3),
    "forecast-order-5": forecast(order=5),
    "forecast-undamped": forecast(damping=1.0),
    "forecast-repeated": forecast(damping=0.0, full=(0, 2, 4, 5, 8, 13)),
    "forecast-damped": forecast(damping=0.25, full=(0, 3, 4, 9, 10, 17)),
    "forecast-shaped": fixed(lambda: vaccel.Forecast.shaped(STEPS, 8)),
}

TIMELINES: dict[str, Maker] = {
    "t-blocks": letters("FFrrFrFrrrFFrrrrFrrF"),
    "t-residual": letters("FrrrFrFrrrFFrrrrFrrF", "residual"),
    "t-output-r": letters("FrrFFrrrFrFrrrrFFrrr", "output"),
    "t-forecast-r": letters("FrFrrFFrrrFrrrrFrFrr", "forecast"),
    "t-guidance": letters("FFgggFgFggFgggFFgggF"),
    "t-output": letters("FFoooFoFoooooFFoooFo"),
    "t-resume": letters("FbbFbbbFbbbbFbbFbbbb"),
    "t-forecast": letters("FFppFpppFppppFpFFppp"),
    # Not "r" of the blocks beside "b": at 9c9aa50 such a step adds what nothing has written.
    "t-caches-blocks": letters("FFgogrFrgFrrgrogoFpF"),
    "t-caches": letters("FFgogbFrbFbrgrbgoFbF", "residual"),
    "t-caches-again": letters("FrogbFrogbFFbgorFoog", "residual"),
    "t-every": letters("FFgogbFrpFpprFbgoFpF", "residual"),
    "t-every-again": letters("FrogbpFrogbpFFpbgorF", "residual"),
    "t-dm": letters("FFFFFFmmmmFmmmmmmsss"),
    "t-sketch": letters("FFFFFsssssssssssssss"),
    "t-small-first": letters("sFmsFrmsFosFgmsFbsmF", "residual"),
    "t-small-blocks": letters("sFmsFrmsFosFgmsFrsmF"),
    "t-small-every": letters("FmFsFoFgFbFrFpFmsmss", "residual"),
    "t-all-letters": letters("FFmrogbpsFFmrogbpsFF", "residual"),
}


def rescales(magnitude: str, cfg_reuse: bool) -> Callable[[str], list]:
    m = {"action": "m", "magnitude": magnitude, "cfg_reuse": cfg_reuse}
    return lambda family: [*"FFFF", m, m, m, "F", m, "F", "s", m, m, "o", m, "F", m, m, "s", "s"]


def small_residuals(family: str) -> list:
    r = {"action": "r", "model": "small"}
    return [*"FFs", r, r, "F", r, "s", r, "r", r, "F", "r", "s", r, r, r, "s", "s", r]


def both_levels(family: str) -> list:
    r = {"action": "r", "reuse": "output"}
    return ["F", r, "r", "F", "r", r, r, "r", "F", r, "o", "r", "F", "g", r, "r", "F", "o", "r", r]


def resumes(branches: tuple[str, ...]) -> Callable[[str], list]:
    def plan(family: str) -> list:
        depth, order = DEPTH[family], (0, 1, 3, 2, 3, 0, 2, 1, 3, 0, 0, 1, 3, 2, 2, 1)
        b = [{"action": "b", "block": n % depth, "branches": branches[i % len(branches)]} for i, n in enumerate(order)]
        return ["F", *b[:5], "F", *b[5:9], "F", "F", *b[9:]]

    return plan


def weights(count: int, bands: int, channels: int) -> list:
    """Of velocities [count, bands, channels], newest first; they add up to 1."""
    drawn = np.random.default_rng(count + 10 * bands + 100 * channels).standard_normal((count, bands, channels)) / 10
    drawn[0] += 1 - drawn.sum(axis=0)
    return drawn.astype(np.float32).tolist()


def weighed(bands: int, channels: bool, correct: bool, mixed: bool = False) -> Callable[[str], list]:
    """Forecasts of one, two and three velocities by given weights; and corrections of computed steps.

    By bands of two at most: more are too many terms beside the latents that diffusion models need.
    """

    def plan(family: str) -> list:
        wide = CHANNELS[family] if channels else 1
        one, two, three = ({"action": "p", "weights": weights(k, bands, wide)} for k in (1, 2, min(3, 4 - bands)))
        full = {"action": "F", "correction": weights(2, 1, wide)} if correct else "F"
        more = {"action": "F", "correction": weights(3, 1, wide)} if correct else "F"
        others = [{"action": "r", "reuse": "output"}, "o", "g", "b"] if mixed else [two, one, two, three]
        return ["F", one, full, two, two, more, three, two, three, *others, more, two, full, three, one, two, more]

    return plan


PLANS: dict[str, Maker] = {
    **{
        f"p-rescale-{magnitude}{'' if cfg_reuse else '-both'}": planned(rescales(magnitude, cfg_reuse))
        for magnitude in ("small", "cached", "projection")
        for cfg_reuse in (True, False)
    },
    "p-small-residuals": planned(small_residuals),
    "p-both-levels": planned(both_levels),
    "p-resume-cond": planned(resumes(("cond",))),
    "p-resume-both": planned(resumes(("both",))),
    "p-resume-mixed": planned(resumes(("cond", "both", "both"))),
    "p-weights": planned(weighed(1, False, False)),
    "p-weights-channels": planned(weighed(1, True, False)),
    "p-weights-bands": planned(weighed(2, False, False)),
    "p-weights-bands-channels": planned(weighed(2, True, False)),
    "p-correction": planned(weighed(1, False, True)),
    "p-correction-channels": planned(weighed(1, True, True)),
    "p-correction-mixed": planned(weighed(1, True, True, mixed=True)),
}

#: Forecasts by the demo family's calibration on other pipelines: 50 steps, weights of whole tensors.
BORROWED: dict[str, dict[str, Any]] = {
    "17": {"budget": 17},
    "9-uncorrected": {"budget": 9, "correct": False},
    "13-guard": {"budget": 13, "guard": 1.5},
    "22-order-3-guard": {"budget": 22, "order": 3, "guard": 1.1, "correct": False},
    "27-order-1": {"budget": 27, "order": 1},
    "13-sum": {"budget": 13, "objective": "sum", "gain": False},
}


def borrowed(**fields: Any) -> Maker:
    return fixed(lambda: vaccel.Forecast.load(WEIGHTS / "forecast.json", per="tensor", allow_mismatch=True, **fields))


# --- cases ----------------------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[], list[Made]]] = {}


def add(name: str, case: Callable[[], list[Made]]) -> None:
    assert name not in CASES, name
    CASES[name] = case


def accelerated(pipe: Any, method: vaccel.Method, small: Any = None, **options: Any) -> vaccel.Handle:
    return vaccel.accelerate(pipe, method, small=small if method.needs_small else None, **options)


def one_run(setup: Setup, maker: Maker, form: Form, *, after: bool = False, **call: Any) -> list[Made]:
    """A run; with ``after`` also the plain pipeline's, once the handle is removed."""
    method, pipe = maker(setup.family), setup.pipe()
    with accelerated(pipe, method, setup.small() if method.needs_small else None) as handle:
        made = [Made(setup.sample(pipe, form, **call), handle.trace)]
    return [*made, Made(setup.sample(pipe, form, **call), None)] if after else made


def add_run(setup: str, method: str, maker: Maker, form: str, **call: Any) -> None:
    add(f"{setup}/{method}/{form}", lambda: one_run(SETUPS[setup], maker, FORMS[form], **call))


def add_in_turn(
    setups: Iterable[str], makers: dict[str, Maker], *, forms: Iterable[str] = FORMS, start: int = 0
) -> None:
    """Every method on every setup, each pair with one form of call, the forms in turn."""
    names = list(forms)
    for i, setup in enumerate(setups):
        for j, (name, maker) in enumerate(makers.items()):
            add_run(setup, name, maker, names[(start + i + j) % len(names)])


def some(makers: dict[str, Maker], *names: str) -> dict[str, Maker]:
    return {n: makers[n] for n in names}


EVERY = {**SKIPPING, **VARIANTS, **TIMELINES, **PLANS}

# The pipelines by themselves: where these differ, it is not vaccel.
for _setup in SETUPS:
    add(
        f"{_setup}/unaccelerated",
        lambda setup=SETUPS[_setup]: [
            Made(setup.sample(pipe := setup.pipe(), FORMS["cfg"]), None), Made(setup.sample(pipe, FORMS["plain"]), None)
        ],
    )  # fmt: skip

# Every family, every form, what skips.
for _family, (_name, _maker), _form in itertools.product(FAMILIES, SKIPPING.items(), FORMS):
    add_run(_family, _name, _maker, _form, after=_form == "cfg")

# Variants and schedules: each on each family, the forms in turn.
add_in_turn(FAMILIES, VARIANTS)
add_in_turn(FAMILIES, TIMELINES, start=1)
add_in_turn(FAMILIES, PLANS, forms=("cfg", "plain", "cfg-2"))
for _family in FAMILIES:  # what is guided, where guidance would not have been in its turn
    for _name in ("t-every", "t-all-letters", "t-caches", "p-resume-mixed", "p-rescale-projection-both"):
        for _form in ("cfg", "cfg-2"):
            if f"{_family}/{_name}/{_form}" not in CASES:
                add_run(_family, _name, EVERY[_name], _form)

# Other solvers.
SOLVED = some(
    EVERY, "dm", "sr-denoised", "tea", "mix", "forecast", "t-all-letters", "schedule-output", "p-correction-channels"
)
add_in_turn(("wan-euler", "wan-dpm", "wan-epsilon", "cogvideox-dpm", "cogvideox-added"), SOLVED)
add_in_turn(("wan-early", "cogvideox-early"), some(EVERY, "sr-latents", "sr-denoised"))
add_in_turn(("cogvideox-rotary-small",), some(EVERY, "dm", "dm-both", "sr", "sr-tea"), forms=("cfg", "plain-2"))
add_in_turn(("cogvideox-deep",), some(EVERY, "mix", "mix-both", "mix-own-intervals", "p-resume-mixed", "t-every"))

# Other pipelines and other ways of guiding.
PIPES = some(EVERY, *SKIPPING, "dm-projection-both", "t-all-letters")
add_in_turn(("wan-two", "wan-i2v", "wan-v2v"), PIPES)
add_in_turn(("wan-two-two",), some(EVERY, "dm", "sr", "sr-tea", "p-small-residuals", "t-all-letters", "p-correction"))
add_in_turn(("wan-tokenwise",), some(EVERY, "dm", "sr", "tea", "tea-retention", "mix", "forecast", "lemica"))
add_in_turn(
    ("wan-on-off", "wan-late"),
    {**PIPES, **some(EVERY, "t-caches", "p-resume-both", "p-correction", "schedule-output", "dm-both")},
    forms=("cfg", "cfg-2"),
)
add_in_turn(
    ("cogvideox-dynamic",), some(EVERY, "dm", "sr", "sr-denoised", "mix", "mix-both", "t-every"), forms=("cfg",)
)
add_in_turn(("cogvideox-1.5",), some(EVERY, "dm-both", "tea", "mix", "lemica", "forecast"))
add_in_turn(("cogvideox-v2v",), some(EVERY, "dm", "sr-denoised", "tea", "mix-both", "forecast"), forms=("cfg", "plain"))
add_in_turn(("qwen-image-again",), some(EVERY, "dm", "sr-denoised", "tea", "mix", "forecast", "t-all-letters"))
add_in_turn(
    ("qwen-image-edit", "qwen-image-edit-2511"),
    some(EVERY, "dm", "sr", "tea", "mix-both", "lemica", "forecast", "t-every"),
)
add_in_turn(
    ("wan-bf16", "cogvideox-bf16", "qwen-image-bf16"),
    some(EVERY, "dm", "dm-projection", "sr", "tea", "mix", "t-every", "p-correction-channels"),
    forms=("cfg", "plain"),
)

# A calibration's weights, guard and corrections with solvers that each respond in their own way.
for (_i, _setup), (_name, _fields) in itertools.product(
    enumerate(("wan", "wan-euler", "wan-dpm", "wan-epsilon", "wan-two", "cogvideox", "cogvideox-dpm", "qwen-image")),
    BORROWED.items(),
):
    if (_i + list(BORROWED).index(_name)) % 2 == 0 or _setup == "wan":
        add_run(_setup, f"borrowed-{_name}", borrowed(**_fields), list(FORMS)[(_i + len(_name)) % 4], steps=50)
for _model, _budget in (("wan2.1-t2v-14b", 17), ("wan2.1-t2v-1.3b", 25)):
    for _kind in (vaccel.LeMiCa, vaccel.Forecast):
        add_run(
            "wan", f"{_kind.id}-{_model}-{_budget}",
            fixed(lambda kind=_kind, model=_model, budget=_budget: kind.preset(model, budget=budget)), "cfg", steps=50,
        )  # fmt: skip


# One handle, several runs.


def several(setup: Setup, maker: Maker, calls: Iterable[tuple[Form, dict[str, Any]]]) -> list[Made]:
    method, pipe, made = maker(setup.family), setup.pipe(), []
    with accelerated(pipe, method, setup.small()) as handle:
        for form, call in calls:
            made.append(Made(setup.sample(pipe, form, **call), handle.trace))
    return made


def two_prompts(form: Form) -> list:
    return [(form, {}), (form, {"prompt": PROMPTS[1], "seed": 3}), (form, {})]


def other_step_counts() -> list:
    return [(FORMS["cfg"], {"steps": n}) for n in (20, 12, 30, 20)]


def other_forms() -> list:
    return [(FORMS[name], {}) for name in ("cfg", "cfg-2", "plain", "plain-2", "cfg")]


def other_sizes(family: str) -> list:
    sizes = ((64, 64), (64, 64), (64, 64)) if family == "cogvideox" else ((32, 32), (32, 48), (48, 32), (32, 32))
    return [(FORMS["cfg"], {"height": h, "width": w}) for h, w in sizes]


def aborted(setup: Setup, maker: Maker, form: Form) -> list[Made]:
    """A run that is stopped after ten steps, then two whole ones."""

    def stop(pipe: Any, i: int, t: Any, tensors: dict) -> dict:
        if i == 9:
            raise KeyboardInterrupt("stop")
        return tensors

    method, pipe, made = maker(setup.family), setup.pipe(), []
    with accelerated(pipe, method, setup.small()) as handle:
        try:
            setup.sample(pipe, form, seed=3, callback_on_step_end=stop)
        except KeyboardInterrupt:
            made.append(Made(None, handle.trace))
        made.append(Made(setup.sample(pipe, form), handle.trace))
        made.append(Made(setup.sample(pipe, form, seed=3), handle.trace))
    return made


def replayed(setup: Setup, maker: Maker, form: Form, **call: Any) -> list[Made]:
    """A run, and its trace as a schedule."""
    method, pipe, small = maker(setup.family), setup.pipe(), setup.small()
    with accelerated(pipe, method, small) as handle:
        first = Made(setup.sample(pipe, form, **call), handle.trace)
    with accelerated(pipe, first.trace.as_schedule(), small) as handle:
        return [first, Made(setup.sample(pipe, form, **call), handle.trace)]


ADAPTIVE = some(EVERY, "dm", "sr", "sr-tea", "tea", "mix", "mix-both")
for _name, _maker in SKIPPING.items():
    for _i, _family in enumerate(FAMILIES):
        if _family == "wan" or list(SKIPPING).index(_name) % 2 == _i % 2:
            add(
                f"{_family}/{_name}/two-prompts",
                lambda s=SETUPS[_family], m=_maker: several(s, m, two_prompts(FORMS["cfg"])),
            )
            add(f"{_family}/{_name}/aborted", lambda s=SETUPS[_family], m=_maker: aborted(s, m, FORMS["cfg"]))
for _name in ("t-every", "t-all-letters", "p-correction", "p-resume-mixed"):
    add(f"wan/{_name}/aborted", lambda m=EVERY[_name]: aborted(SETUPS["wan"], m, FORMS["plain-2"]))
    add(f"cogvideox/{_name}/aborted", lambda m=EVERY[_name]: aborted(SETUPS["cogvideox"], m, FORMS["cfg"]))
add("wan-two/mix/aborted", lambda: aborted(SETUPS["wan-two"], EVERY["mix"], FORMS["cfg"]))
add("wan-two/dm/two-prompts", lambda: several(SETUPS["wan-two"], EVERY["dm"], two_prompts(FORMS["cfg"])))
for _i, (_name, _maker) in enumerate(ADAPTIVE.items()):
    _family = FAMILIES[_i % 3]
    add(f"{_family}/{_name}/step-counts", lambda s=SETUPS[_family], m=_maker: several(s, m, other_step_counts()))
    if _family != "wan":
        add(f"wan/{_name}/step-counts", lambda m=_maker: several(SETUPS["wan"], m, other_step_counts()))
for _i, (_name, _maker) in enumerate(
    some(EVERY, *SKIPPING, "t-all-letters", "dm-projection", "p-resume-mixed").items()
):
    _family = FAMILIES[_i % 3]
    add(f"{_family}/{_name}/forms", lambda s=SETUPS[_family], m=_maker: several(s, m, other_forms()))
    _family = ("qwen-image", "wan")[_i % 2]
    add(
        f"{_family}/{_name}/sizes",
        lambda f=_family, m=_maker: several(SETUPS[f], m, other_sizes(f)),
    )
for _setup, _name in (
    ("wan", "dm"), ("wan", "mix"), ("wan", "sr-tea"), ("wan-two", "forecast"), ("wan-two-two", "sr-tea"),
    ("cogvideox", "dm-both"), ("cogvideox", "mix-both"), ("qwen-image", "mix"), ("qwen-image", "tea"),
):  # fmt: skip
    add(f"{_setup}/{_name}/replayed", lambda s=SETUPS[_setup], m=EVERY[_name]: replayed(s, m, FORMS["cfg"]))
for _setup in ("wan", "cogvideox"):
    add(
        f"{_setup}/borrowed-guard/replayed",
        lambda s=SETUPS[_setup]: replayed(s, borrowed(budget=13, guard=1.2), FORMS["cfg"], steps=50),
    )


# What surrounds a pipeline.


def other_methods() -> list[Made]:
    """One pipeline, one method after the other."""
    setup, pipe, small, made = SETUPS["wan"], tiny.wan_pipeline(), tiny.wan_small(), []
    for maker in SKIPPING.values():
        with accelerated(pipe, maker("wan"), small) as handle:
            made.append(Made(setup.sample(pipe, FORMS["cfg"]), handle.trace))
        made.append(Made(setup.sample(pipe, FORMS["plain"]), None))
    return made


def side_by_side() -> list[Made]:
    """Two pipelines by turns."""
    one, other, small = tiny.wan_pipeline(), tiny.wan_pipeline(transformer=tiny.wan_transformer(5)), tiny.wan_small()
    made = []
    with accelerated(one, EVERY["dm"]("wan"), small) as first, accelerated(other, EVERY["mix"]("wan")) as second:
        for form in ("cfg", "plain", "cfg"):
            made.append(Made(sample(one, FORMS[form]), first.trace))
            made.append(Made(sample(other, FORMS[form]), second.trace))
    return made


def one_inside_the_other() -> list[Made]:
    """A pipeline's run in the middle of another's."""
    one, other, small, made = tiny.wan_pipeline(), tiny.qwen_pipeline(), tiny.wan_small(), []
    with accelerated(one, EVERY["dm"]("wan"), small) as first, accelerated(other, EVERY["mix"]("qwen-image")) as second:

        def inside(pipe: Any, i: int, t: Any, tensors: dict) -> dict:
            if i == 9:
                made.append(Made(sample(other, FORMS["cfg"]), second.trace))
            return tensors

        made.append(Made(sample(one, FORMS["cfg"], callback_on_step_end=inside), first.trace))
    return made


def changed_schedulers(method: str) -> list[Made]:
    """Another solver for every run of one handle."""
    pipe, small, made = tiny.wan_pipeline(), tiny.wan_small(), []
    with accelerated(pipe, EVERY[method]("wan"), small) as handle:
        for scheduler in (tiny.unipc(), FlowMatchEulerDiscreteScheduler(shift=3.0), flow_dpm(), tiny.unipc(5.0)):
            pipe.scheduler = scheduler
            made.append(Made(sample(pipe, FORMS["cfg"]), handle.trace))
    return made


def in_inference_mode(method: str) -> list[Made]:
    pipe, small = tiny.wan_pipeline(), tiny.wan_small()
    with accelerated(pipe, EVERY[method]("wan"), small) as handle:
        with torch.inference_mode():
            first = Made(sample(pipe, FORMS["cfg"]).clone(), handle.trace)
        return [first, Made(sample(pipe, FORMS["cfg"]), handle.trace)]


def offloaded(method: str, whole: bool) -> list[Made]:
    pipe, small = tiny.wan_pipeline(), tiny.wan_small()
    offload = hf_accelerate.cpu_offload_with_hook if whole else hf_accelerate.cpu_offload
    offload(pipe.transformer, execution_device="cpu")
    with accelerated(pipe, EVERY[method]("wan"), small) as handle:
        return [Made(sample(pipe, FORMS[form]), handle.trace) for form in ("cfg", "plain")]


def other_attention(name: str) -> list[Made]:
    pipe = tiny.wan_pipeline()
    with accelerated(pipe, EVERY["mix"]("wan"), attention=name) as handle:
        return [Made(sample(pipe, FORMS["cfg"]), handle.trace)]


def beside_a_use_of_its_own() -> list[Made]:
    """The transformer is called by hand in the middle of a run, which is none of the run's steps."""
    pipe, made, given = tiny.wan_pipeline(), [], torch.Generator().manual_seed(4)
    arguments = {
        "hidden_states": torch.randn(1, 16, 3, 4, 4, generator=given),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, 32, generator=given),
    }

    def by_hand(pipe: Any, i: int, t: Any, tensors: dict) -> dict:
        if i == 5:
            with torch.no_grad():
                made.append(Made(pipe.transformer(**arguments).sample, None))
        return tensors

    with accelerated(pipe, EVERY["mix"]("wan")) as handle:
        made.append(Made(sample(pipe, FORMS["cfg"]), handle.trace))
        with torch.no_grad():
            made.append(Made(pipe.transformer(**arguments).sample, None))
    return made


add("wan/around/other-methods", other_methods)
add("wan/around/side-by-side", side_by_side)
add("wan/around/one-inside-the-other", one_inside_the_other)
add("wan/around/transformer-by-hand", beside_a_use_of_its_own)
for _name in ("forecast", "dm", "schedule-forecast"):
    add(f"wan/around/schedulers-{_name}", lambda m=_name: changed_schedulers(m))
for _name in ("dm", "mix", "forecast"):
    add(f"wan/around/inference-mode-{_name}", lambda m=_name: in_inference_mode(m))
for _name, _whole in (("tea", False), ("mix", True), ("dm", True), ("mix-both", False), ("forecast", False)):
    add(f"wan/around/offload-{_name}-{'whole' if _whole else 'layers'}", lambda m=_name, w=_whole: offloaded(m, w))
for _name in ("sdpa", "_native_math"):
    add(f"wan/around/attention-{_name}", lambda n=_name: other_attention(n))


# Loops of one's own.


def flow_of(levels: list[float], scales: list | None = None) -> Any:
    """A ``Flow``, found by the annotation of the argument that it is given to: modules may move."""
    hint = typing.get_type_hints(vaccel.Denoiser.run)["flow"]
    (kind,) = (t for t in typing.get_args(hint) if t is not type(None))
    return kind(tuple(levels), None if scales is None else tuple(scales))


def loop(
    denoiser: vaccel.Denoiser, shape: tuple, conditions: tuple, *, guided: Callable[[int], bool], scale: float = 1000.0,
    steps: int = STEPS, flow: Any = None, rows: bool = False, until: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Made:  # fmt: skip
    """Euler over flow times."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    times = torch.linspace(1, 0, steps + 1)
    with denoiser.run(num_steps=steps, **({} if flow is None else {"flow": flow})) as run:
        for i in range(steps if until is None else until):
            t = (times[i] * scale).expand(shape[0]) if rows else times[i] * scale
            v = run.step(i, t, x, conditions[0], conditions[1] if guided(i) else None)
            x = x + (times[i + 1] - times[i]) * v
    return Made(x if until is None else None, run.trace)


def texts(*shape: int) -> tuple:
    return tuple(torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)))


def called(model: Any) -> Callable[..., torch.Tensor]:
    return lambda x, t, condition: model(x, t.expand(len(x)), condition, return_dict=False)[0]


def own_loop(
    family: str, maker: Maker, *, plain: bool = False, guided: Callable[[int], bool] = lambda i: True,
    denoise: bool = False, again: bool = False, **options: Any,
) -> list[Made]:  # fmt: skip
    """A ``Denoiser``'s runs on the family's transformers, or on callables of them."""
    method = maker(family)
    if family == "wan":
        large, small, shape = tiny.wan_transformer(), tiny.wan_small(), (2, 16, 3, 4, 4)
        conditions, scale = texts(2, 8, 32), 1000.0
    elif family == "cogvideox":
        large, small, shape = tiny.cog_transformer(rotary=False), tiny.cog_small(), (2, 3, 4, 8, 8)
        conditions, scale = texts(2, 16, 32), 1000.0
    else:
        large, small, shape = tiny.qwen_transformer(), tiny.qwen_small(), (2, 6, 16)
        mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)
        conditions = tuple(
            {"encoder_hidden_states": c, "encoder_hidden_states_mask": mask, "img_shapes": [[(1, 2, 3)]] * 2}
            for c in texts(2, 5, 16)
        )
        scale = 1.0
    if plain:
        large, small = called(large), called(small)
    given = {"denoise": lambda v, x, i: x - (1 - i / STEPS) * v} if denoise else {}
    denoiser = vaccel.Denoiser(large, small if method.needs_small else None, method=method, guidance=4.0, **given)
    made = [loop(denoiser, shape, conditions, guided=guided, scale=scale, **options)]
    if again:
        made.append(loop(denoiser, shape, conditions, guided=guided, scale=scale, until=7, **options))
        made.append(loop(denoiser, shape, conditions, guided=guided, scale=scale, **options))
    return made


def of_a_formula(maker: Maker, *, dtype: torch.dtype, **options: Any) -> list[Made]:
    """A callable that is no model at all."""
    mixed = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).to(dtype) / 2

    def model(x: torch.Tensor, t: torch.Tensor, condition: float) -> torch.Tensor:
        return torch.tanh(torch.einsum("cd,bdhw->bchw", mixed, x) + condition + t)

    denoiser = vaccel.Denoiser(model, method=maker("wan"), guidance=3.0)
    return [loop(denoiser, (2, 3, 4, 5), (0.3, -0.4), scale=1.0, dtype=dtype, **options)]


ALWAYS, NEVER = (lambda i: True), (lambda i: False)
GUIDED: dict[str, Callable[[int], bool]] = {
    "cfg": ALWAYS, "plain": NEVER, "paused": lambda i: not 5 <= i < 10, "late": lambda i: i >= 7,
    "early": lambda i: i < 8,
}  # fmt: skip
OPEN = some(
    EVERY, "dm", "dm-both", "dm-projection-both", "sr", "schedule-residual", "schedule-output", "mix-step-cfg",
    "t-residual", "forecast", "forecast-order-3", "p-correction",
)  # fmt: skip
for _i, (_name, _maker) in enumerate(OPEN.items()):
    for _j, _guided in enumerate(GUIDED):
        if _j < 2 or (_i + _j) % 2:
            add(
                f"loop/callables/{_name}/{_guided}",
                lambda m=_maker, g=GUIDED[_guided]: own_loop("wan", m, plain=True, guided=g),
            )
INSIDE = some(EVERY, "dm", "sr-tea", "tea", "lemica", "mix", "mix-both", "forecast", "t-all-letters", "p-resume-mixed")
for (_i, _family), (_j, (_name, _maker)) in itertools.product(enumerate(FAMILIES), enumerate(INSIDE.items())):
    _guided = list(GUIDED)[(_i + _j) % len(GUIDED)]
    add(
        f"loop/{_family}/{_name}/{_guided}",
        lambda f=_family, m=_maker, g=GUIDED[_guided]: own_loop(f, m, guided=g, again=True),
    )
for _name in ("sr-denoised", "sr-tea-denoised", "sr-latents"):
    add(f"loop/wan/{_name}/cfg", lambda m=EVERY[_name]: own_loop("wan", m, denoise=True))
for _name in ("tea", "tea-retention", "mix"):
    add(f"loop/wan/{_name}/rows", lambda m=EVERY[_name]: own_loop("wan", m, rows=True))
_levels = [1 - (i / STEPS) ** 1.5 for i in range(STEPS)] + [0.0]
_angles = [s * 1.5 for s in _levels[:-1]]
_cos_sin = [(float(np.cos(a)), float(np.sin(a))) for a in _angles]
_scales = {
    "flow": None,
    "v": [(a + s, s - a) for a, s in _cos_sin],
    "noise": [(1 + s / a, -1 / a) for a, s in _cos_sin],
}
for (_kind, _scale), _name in itertools.product(
    _scales.items(), ("forecast", "forecast-order-1", "p-weights-channels", "p-correction", "p-weights-bands")
):
    add(
        f"loop/wan/{_name}/{_kind}-levels",
        lambda m=EVERY[_name], s=_scale: own_loop("wan", m, plain=True, flow=flow_of(_levels, s)),
    )
for _name, _dtype in itertools.product(
    ("forecast", "schedule-residual", "schedule-output", "mix-step-cfg"), ("64", "32")
):
    add(
        f"loop/formula/{_name}/float{_dtype}",
        lambda m=EVERY[_name], d=_dtype: of_a_formula(m, dtype=getattr(torch, f"float{d}"), guided=ALWAYS),
    )


# The family that ships, with what was calibrated and distilled for it.


def demo(
    method: Callable[[], vaccel.Method], *, steps: int = 50, guidance: float = 4.0, prompts: int = 1,
    scheduler: Callable[[], Any] | None = None, runs: int = 1,
) -> list[Made]:  # fmt: skip
    family = vaccel.demo.load()
    pipe, call, made = family.pipe, {**family.call, "guidance_scale": guidance, "output_type": "latent"}, []
    if scheduler is not None:
        pipe.scheduler = scheduler()
    with accelerated(pipe, method(), family.small) as handle:
        for i in range(runs):
            given = generators(Form(guidance, prompts), i)
            prompt = CAPTIONS[i % 2] if prompts == 1 else CAPTIONS
            made.append(Made(pipe(prompt, num_inference_steps=steps, generator=given, **call).frames, handle.trace))
    return made


def from_demo(kind: type, name: str, *args: Any, **fields: Any) -> Callable[[], vaccel.Method]:
    return lambda: kind.load(WEIGHTS / f"{name}.json", *args, **fields)


def shipped(*args: Any, **fields: Any) -> Callable[[], vaccel.Method]:
    return from_demo(vaccel.Forecast, "forecast", *args, **fields)


def experts(**fields: Any) -> Callable[[], vaccel.Method]:
    return lambda: vaccel.DualExpert(WEIGHTS / "dual_expert", **fields)


for _budget, _guard, _per in itertools.product((9, 17), (None, 1.5), ("channel", "tensor")):
    add(
        f"demo/forecast-{_budget}-{_per}-{'guard' if _guard else 'fixed'}",
        lambda b=_budget, g=_guard, p=_per: demo(shipped(b, guard=g, per=p)),
    )
add("demo/forecast-13-uncorrected", lambda: demo(shipped(13, correct=False)))
add("demo/forecast-13-order-3-guard", lambda: demo(shipped(13, order=3, guard=1.05), runs=2))
add("demo/forecast-13-order-1-sum", lambda: demo(shipped(13, order=1, objective="sum", gain=False)))
add("demo/forecast-13-squares-2", lambda: demo(shipped(13, objective="squares", guard=1.2), prompts=2))
add("demo/forecast-13-plain", lambda: demo(shipped(13, guard=1.2), guidance=1.0))
add(
    "demo/forecast-17-first-order",  # another solver on the same levels
    lambda: demo(shipped(17), scheduler=lambda: type(tiny.unipc()).from_config(tiny.unipc().config, solver_order=1)),
)
add("demo/lemica-10", lambda: demo(from_demo(vaccel.LeMiCa, "lemica", 10)))
add(
    "demo/lemica-17-sum-residual",
    lambda: demo(from_demo(vaccel.LeMiCa, "lemica", 17, objective="sum", reuse="residual")),
)
add("demo/mixcache", lambda: demo(from_demo(vaccel.MixCache, "mixcache")))
add(
    "demo/mixcache-eff-both",
    lambda: demo(from_demo(vaccel.MixCache, "mixcache", intervals="eff", block_branches="both")),
)
add("demo/mixcache-2", lambda: demo(from_demo(vaccel.MixCache, "mixcache"), prompts=2))
add("demo/teacache", lambda: demo(from_demo(vaccel.TeaCache, "teacache", threshold=0.2)))
add("demo/teacache-plain", lambda: demo(from_demo(vaccel.TeaCache, "teacache", threshold=0.1), guidance=1.0))
add(
    "demo/srdiffusion-teacache",
    lambda: demo(
        lambda: vaccel.SRDiffusion(0.03, rendering=from_demo(vaccel.TeaCache, "teacache_small", threshold=0.1)())
    ),
)
add("demo/srdiffusion-denoised", lambda: demo(lambda: vaccel.SRDiffusion(0.03, signal="denoised")))
add("demo/direction-magnitude", lambda: demo(lambda: vaccel.DirectionMagnitude(0.005), prompts=2))
add("demo/direction-magnitude-both", lambda: demo(lambda: vaccel.DirectionMagnitude(0.002, cfg_reuse=False)))
for _n, _merged in ((4, False), (4, True), (2, False), (3, True), (8, False)):
    add(
        f"demo/experts-{_n}{'-merged' if _merged else ''}",
        lambda n=_n, m=_merged: demo(experts(steps=n, merged=m), steps=n, runs=2),
    )
add("demo/experts-plain", lambda: demo(experts(), guidance=1.0, steps=4))
add("demo/experts-2-of-50", lambda: demo(experts(), prompts=2, steps=50))


def experts_and_back() -> list[Made]:
    family = vaccel.demo.load()
    call = {**family.call, "output_type": "latent", "num_inference_steps": 8}
    with accelerated(family.pipe, experts()()) as handle:
        made = [Made(family.pipe(CAPTIONS[0], generator=generators(FORMS["cfg"], 0), **call).frames, handle.trace)]
    return [*made, Made(family.pipe(CAPTIONS[0], generator=generators(FORMS["cfg"], 0), **call).frames, None)]


add("demo/experts-and-back", experts_and_back)


# --- digests --------------------------------------------------------------------------------------------------------


def sha(*parts: bytes | str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def bits(latents: torch.Tensor | None) -> bytes:
    if latents is None:
        return b""
    flat = latents.detach().cpu().contiguous()
    return f"{flat.dtype} {tuple(flat.shape)}".encode() + flat.reshape(-1).view(torch.uint8).numpy().tobytes()


def text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)  # floats by their repr


def digests(made: Made) -> dict[str, Any]:
    """What is kept of a run.

    "sha256" of everything, and its parts: "steps" has two hexadecimal digits a step, by which the first step that
    differs is found.
    """
    latents = bits(made.latents)
    if made.trace is None:
        return {"sha256": sha(latents), "latents": sha(latents)[:32]}
    trace = made.trace
    actions = [text(s.action.to_json()) for s in trace.steps]
    # What one metric is called has changed since: values are what is compared.
    metrics = [text({k.replace("forecast_error", "surprise"): v for k, v in s.metrics.items()}) for s in trace.steps]
    forwards = [text([s.index, s.large, s.small]) for s in trace.steps]
    steps = [sha(*each) for each in zip(actions, metrics, forwards, strict=True)]
    timeline, calls = trace.timeline(), trace.calls
    whole = sha(latents, timeline, text(calls), text([trace.num_steps, trace.finished]), *steps)
    return {
        "sha256": whole,
        "latents": sha(latents)[:32],
        "timeline": timeline,
        "calls": [calls["large"], calls["small"]],
        "actions": sha(*actions)[:16],
        "metrics": sha(*metrics)[:16],
        "steps": "".join(s[:2] for s in steps),
        **({} if trace.finished else {"finished": False}),
    }


def run_case(name: str) -> list[dict[str, Any]] | str:
    """Every run's digests; the name of the exception where the case raised one."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [digests(made) for made in CASES[name]()]
    except Exception as error:
        run_case.said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
        return type(error).__name__


def differences(expected: Any, found: Any) -> list[str]:
    if isinstance(expected, str) or isinstance(found, str):
        return [] if expected == found else [f"raised {found} ({run_case.said})"]
    if len(expected) != len(found):
        return [f"{len(expected)} runs were recorded, {len(found)} were made"]
    said = []
    for i, (was, now) in enumerate(zip(expected, found, strict=True)):
        if was == now:
            continue
        where = f"run {i}: " if len(expected) > 1 else ""
        parts = [k for k in ("latents", "timeline", "calls", "actions", "metrics") if was.get(k) != now.get(k)]
        said.append(f"{where}{', '.join(parts) or 'forwards of a step, or whether it finished'}")
        if was.get("steps") != now.get("steps"):
            old, new = was.get("steps", ""), now.get("steps", "")
            same = [old[j : j + 2] == new[j : j + 2] for j in range(0, max(len(old), len(new)), 2)]
            said.append(f"  first step of the trace that differs: {same.index(False)}")
        if was.get("timeline") != now.get("timeline"):
            said += [f"  timeline was {was.get('timeline')}", f"           now {now.get('timeline')}"]
        if was.get("calls") != now.get("calls"):
            said.append(f"  calls (large, small) were {was.get('calls')}, now {now.get('calls')}")
    return said


def about() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "numpy": np.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "native": sorted(p.name.split(".")[0] for p in Path(vaccel.__file__).parent.rglob("_*.so")),
    }


def write(path: Path, header: dict[str, Any], cases: dict[str, Any]) -> None:
    """A line a case."""
    compact = {"separators": (",", ":")}
    lines = [f"{json.dumps(name)}:{json.dumps(runs, **compact)}" for name, runs in cases.items()]
    body = ",\n".join(lines)
    path.write_text(f'{{"about":{json.dumps(header, **compact)},\n"cases":{{\n{body}\n}}}}\n')


def list_raised(cases: dict[str, Any], wanted: Iterable[str]) -> None:
    raised = {n: cases[n] for n in wanted if isinstance(cases.get(n), str)}
    if raised:
        print(f"{len(raised)} cases raised when they were recorded, and are compared with nothing:")
        for name, error in raised.items():
            print(f"  {name}: {error}")


def record(path: Path, names: list[str], whole: bool) -> int:
    kept = json.loads(path.read_text())["cases"] if path.exists() and not whole else {}
    began = time.perf_counter()
    for i, name in enumerate(names):
        start = time.perf_counter()
        kept[name] = run_case(name)
        seconds = time.perf_counter() - start
        shown = run_case.said if isinstance(kept[name], str) else " ".join(r.get("timeline", "-") for r in kept[name])
        print(f"[{i + 1:3}/{len(names)}] {seconds:6.2f} s  {name}  {shown}", flush=True)
    write(path, about(), {n: kept[n] for n in CASES if n in kept})
    print(f"{len(names)} cases in {time.perf_counter() - began:.0f} s, written to {path}")
    list_raised(kept, names)
    return 0


def check(path: Path, names: list[str], chosen: Callable[[str], bool]) -> int:
    stored = json.loads(path.read_text())
    cases, wrong, began = stored["cases"], 0, time.perf_counter()
    for key, value in about().items():
        if stored["about"].get(key) != value:
            print(f"NOTE: recorded with {key} {stored['about'].get(key)}, here {value}: bits may differ for that alone")
    for name in filter(chosen, cases):
        if name not in CASES:
            wrong += 1
            print(f"MISSING {name}: recorded, and no case of this script")
    unknown = [n for n in names if n not in cases]
    comparable = [n for n in names if n in cases and not isinstance(cases[n], str)]
    for i, name in enumerate(comparable):
        said = differences(cases[name], run_case(name))
        if said:
            wrong += 1
            print("\n    ".join([f"DIFFERS {name}", *said]), flush=True)
        if (i + 1) % 25 == 0 or i + 1 == len(comparable):
            print(f"[{i + 1:3}/{len(comparable)}] {time.perf_counter() - began:5.0f} s", flush=True)
    if unknown:
        print(f"{len(unknown)} cases were not recorded: {', '.join(unknown)}")
    list_raised(cases, names)
    print(f"{wrong} of {len(comparable)} cases differ" if wrong else f"all {len(comparable)} cases are the same")
    return int(wrong > 0)


run_case.said = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("record", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("-k", metavar="SUBSTRING", default="", help="only the cases whose name has this in it")
    given = parser.parse_args()
    print(f"vaccel is {vaccel.__file__}")
    if Path(vaccel.__file__).resolve().parent != ROOT / "vaccel":
        raise SystemExit(f"that is not this checkout's: run with PYTHONPATH={ROOT}:{ROOT / 'kernels'}")
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    names = [n for n in CASES if given.k in n]
    if given.command == "record":
        return record(given.file, names, whole=not given.k)
    return check(given.file, names, lambda name: given.k in name)


if __name__ == "__main__":
    sys.exit(main())
