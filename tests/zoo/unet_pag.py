"""Perturbed attention beside or in the place of the prompt's guidance: half as many pictures again at every step."""

from __future__ import annotations

from diffusers import (
    StableDiffusionPAGImg2ImgPipeline,
    StableDiffusionPAGInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGImg2ImgPipeline,
    StableDiffusionXLPAGInpaintPipeline,
    StableDiffusionXLPAGPipeline,
)
from diffusers.pipelines.pag.pipeline_pag_kolors import KolorsPAGPipeline  # hidden where sentencepiece is missing

from .unet_parts import (
    BATCH,
    NO_GUIDANCE,
    SIZE,
    TEXT,
    case,
    ddim,
    half_mask,
    picture,
    sd_parts,
    unet,
    xl_parts,
    xl_unet,
)
from .unet_sdxl import KOLORS, kolors_parts

LAYERS = {"pag_applied_layers": ["mid"]}
TEXT = {**TEXT, "pag_scale": 2.0}
PICTURE = {"image": picture(), "strength": 0.8}
PICTURES = {**BATCH, "image": picture(count=2)}
MASKED = {**SIZE, **PICTURE, "mask_image": half_mask()}
BOTH_MASKED = {**PICTURES, "mask_image": half_mask(count=2)}
NEITHER = {"guidance_scale": 1.0, "pag_scale": 0.0}


def pag(pipeline, parts, call, off=NEITHER, **more):
    """A case of a pipeline with both kinds of guidance, and one that has this kind alone."""
    name = pipeline.__name__
    case(name, pipeline, parts, {**TEXT, **call}, guidance=off, **more)
    alone = None if off is NO_GUIDANCE else off
    case(f"{name}-alone", pipeline, parts, {**TEXT, **call, "guidance_scale": 0.0}, guidance=alone, **more)


pag(StableDiffusionPAGPipeline, lambda: sd_parts(ddim(), **LAYERS), SIZE)
case(
    "StableDiffusionPAGPipeline-adaptive",
    StableDiffusionPAGPipeline,
    lambda: sd_parts(ddim(), pag_applied_layers=["down", "mid", "up"]),
    {**TEXT, **SIZE, "pag_adaptive_scale": 0.01},
    guidance=NEITHER,
)
pag(StableDiffusionPAGImg2ImgPipeline, lambda: sd_parts(ddim(), **LAYERS), PICTURE, batch=PICTURES)
pag(
    StableDiffusionPAGInpaintPipeline,
    lambda: sd_parts(ddim(), unet(channels=9), **LAYERS),
    MASKED,
    batch=BOTH_MASKED,
)
pag(StableDiffusionXLPAGPipeline, lambda: xl_parts(**LAYERS), SIZE)
pag(StableDiffusionXLPAGImg2ImgPipeline, lambda: xl_parts(**LAYERS), PICTURE, batch=PICTURES)
pag(
    StableDiffusionXLPAGInpaintPipeline,
    lambda: xl_parts(denoiser=xl_unet(channels=9), **LAYERS),
    MASKED,
    NO_GUIDANCE,  # this pipeline leaves its attention perturbed, so that no later call can do without
    batch=BOTH_MASKED,
)
pag(KolorsPAGPipeline, lambda: kolors_parts(**LAYERS), KOLORS)
