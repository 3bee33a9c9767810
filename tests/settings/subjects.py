"""The pipelines that settings are tried on, and the methods: tiny, random, the same weights every time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tiny
import torch
from diffusers import DDIMScheduler
from zoo import image_flux, unet_sd
from zoo import image_parts as made
from zoo.base import CASES, tensors

import vaccel
from vaccel.methods import Method

STEPS = 6
#: Steps of Auto's runs, which it skips some of: of 8 and less none.
LONG = 9
#: The steps that are computed where a schedule says it.
HALF = (0, 2, 4)
#: A polynomial that makes TeaCache skip on the tiny random models.
COEFFICIENTS = (1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A pipeline: how it is built and called, and where its blocks are.

    Args:
        attribute: its denoiser.
        branches: calls of the denoiser a step.
        first, last: the lists that hold the first and the last block; "" where no family describes the denoiser.
        small: makes the small model beside it; None where there is none.
    """

    name: str
    build: Callable[[], Any]
    call: Mapping[str, Any]
    attribute: str
    branches: int
    first: str = ""
    last: str = ""
    small: Callable[[], Any] | None = None

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        return getattr(pipe, self.attribute)


def _bare(pipe: Any) -> Any:
    """Without what encodes texts and decodes latents: the denoiser is what settings are about, and copies are cheap."""
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae"):
        if name in pipe.components:
            pipe.register_modules(**{name: None})
    return pipe


def _sd() -> Any:
    pipe = CASES["StableDiffusionPipeline"].build()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)  # a step a timestep
    return pipe


def _wan() -> Any:
    return tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=3))


def _flux() -> Any:
    pipe = CASES["FluxPipeline"].build()
    config = {**pipe.transformer.config, "num_layers": 1, "num_single_layers": 2}
    torch.manual_seed(0)
    pipe.transformer = made.stirred(type(pipe.transformer).from_config(config))
    return pipe


def _embeds(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WAN = {"guidance_scale": 5.0, **tiny.WAN_CALL}
SUBJECTS: dict[str, Subject] = {
    one.name: one
    for one in (
        Subject("wan", lambda: _bare(_wan()),
                {**WAN, "prompt_embeds": _embeds(1, 1, 8, 32), "negative_prompt_embeds": _embeds(2, 1, 8, 32)},
                "transformer", 2, "blocks", "blocks", tiny.wan_small),
        Subject("flux", lambda: _bare(_flux()),
                {"prompt_embeds": _embeds(1, 1, 8, 32), "pooled_prompt_embeds": _embeds(3, 1, 32),
                 "height": 32, "width": 32, "output_type": "latent"},
                "transformer", 1, "transformer_blocks", "single_transformer_blocks"),
        Subject("sd", lambda: _bare(_sd()),
                {"prompt_embeds": _embeds(1, 1, 8, 16), "negative_prompt_embeds": _embeds(2, 1, 8, 16),
                 "guidance_scale": 5.0, "output_type": "latent", "height": 32, "width": 32}, "unet", 1),
        Subject("clip", _wan, {**WAN, "prompt": "a red cat runs", "output_type": "pt"}, "transformer", 2, "blocks",
                "blocks"),
    )
}  # fmt: skip


#: Modules that register the cases above.
REGISTERED = (image_flux, unet_sd)


def generate(subject: Subject, pipe: Any, steps: int = STEPS, **changes: Any) -> list[torch.Tensor]:
    """All tensors of what a call returns."""
    arguments = {**subject.call, "num_inference_steps": steps, **changes}
    torch.manual_seed(0)
    with torch.no_grad():
        return [t.clone() for t in tensors(pipe(**arguments, generator=torch.Generator().manual_seed(0)))]


def methods(subject: Subject, folder: str) -> dict[str, tuple[Method, int]]:
    """One of every kind that the subject's family allows, by its name in the table, with its number of steps."""
    found: dict[str, tuple[Method, int]] = {
        "everything": (vaccel.Schedule(range(STEPS), num_steps=STEPS), STEPS),
        "outputs": (vaccel.Schedule(HALF, num_steps=STEPS, reuse="output"), STEPS),
        "EasyCache": (vaccel.EasyCache(threshold=1e6, warmup=2), STEPS),
        "Auto": (vaccel.Auto(psnr=30.0, folder=folder), LONG),
    }
    if subject.first:
        found["blocks"] = (vaccel.LeMiCa((*HALF, STEPS - 1), STEPS), STEPS)
    if subject.name == "clip":  # a whole pipeline, decoded: what is said of the denoiser is said elsewhere
        return {name: found[name] for name in ("everything", "outputs", "blocks")}
    if subject.name == "wan":
        found |= {
            "TeaCache": (vaccel.TeaCache(1.0, COEFFICIENTS), STEPS),
            "resume": (vaccel.Schedule.from_timeline("FFbFbF"), STEPS),
            "small": (vaccel.DirectionMagnitude(threshold=1e6, first=0.3, last=0.9), STEPS),
        }
    return found
