"""Modular Wan 2.1 and 2.2, with every kind of guider."""

from __future__ import annotations

from diffusers import (
    Wan22Blocks,
    Wan22Image2VideoBlocks,
    Wan22Image2VideoModularPipeline,
    Wan22ModularPipeline,
    WanBlocks,
    WanImage2VideoAutoBlocks,
    WanImage2VideoModularPipeline,
    WanModularPipeline,
)

from . import image_parts as made
from . import modular_parts as modular
from . import video_parts as parts
from . import video_wan as wan

CALL = {key: value for key, value in wan.CALL.items() if key not in ("guidance_scale", "output_type")}


def call() -> dict:
    return {**CALL, "output_type": "pt"}


def pictured() -> dict:
    return {**call(), "image": made.picture()}


def build(guider=modular.cfg):
    components = parts.wan_parts(transformer=wan.model(), guider=guider())
    return modular.assembled(WanModularPipeline, WanBlocks(), **components)


def build_two(guider=modular.cfg, guider_2=modular.cfg):
    components = parts.wan_parts(**wan.experts(), guider=guider(), guider_2=guider_2())
    return modular.assembled(Wan22ModularPipeline, Wan22Blocks(), **components)


def build_image():
    components = parts.wan_parts(
        transformer=wan.model(in_channels=36, image_dim=16), guider=modular.cfg(), **wan.seeing()
    )
    return modular.assembled(WanImage2VideoModularPipeline, WanImage2VideoAutoBlocks(), **components)


def build_two_image():
    components = parts.wan_parts(**wan.experts(in_channels=36), guider=modular.cfg(3.5), guider_2=modular.cfg(3.5))
    return modular.assembled(Wan22Image2VideoModularPipeline, Wan22Image2VideoBlocks(), **components)


#: Without guidance the encoder of prompts fails; the others fail with Wan's blocks or with latents of five dimensions.
GUIDERS = modular.guiders(
    "blocks",
    "rescaled interval AdaptiveProjectedGuidance ClassifierFreeZeroStarGuidance TangentialClassifierFreeGuidance "
    "SkipLayerGuidance AutoGuidance",
)
MIXED = GUIDERS["SkipLayerGuidance"], GUIDERS["AdaptiveProjectedGuidance"]

modular.case("WanModularPipeline", build, call)
for name, guider in GUIDERS.items():
    modular.case(f"WanModularPipeline-{name}", lambda guider=guider: build(guider), call)
modular.case("Wan22ModularPipeline", build_two, call, denoisers=wan.BOTH)
modular.case("Wan22ModularPipeline-two_guiders", lambda: build_two(*MIXED), call, denoisers=wan.BOTH)
modular.case("WanImage2VideoModularPipeline", build_image, pictured, batch=None)
modular.case("Wan22Image2VideoModularPipeline", build_two_image, pictured, denoisers=wan.BOTH, batch=None)
