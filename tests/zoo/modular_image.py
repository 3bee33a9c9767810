"""Modular image pipelines: Qwen-Image, Z-Image, FLUX.1, FLUX.2 Klein, Stable Diffusion 3."""

from __future__ import annotations

import torch
from diffusers import (
    Flux2KleinBaseAutoBlocks,
    Flux2KleinBaseModularPipeline,
    Flux2Transformer2DModel,
    FluxAutoBlocks,
    FluxModularPipeline,
    QwenImageAutoBlocks,
    QwenImageModularPipeline,
    StableDiffusion3AutoBlocks,
    StableDiffusion3ModularPipeline,
    ZImageAutoBlocks,
    ZImageModularPipeline,
)

from . import image_flux, image_flux2, image_qwen, image_sd3, image_z
from . import image_parts as made
from . import modular_parts as modular

CALL = {"prompt": made.PROMPT, "height": 32, "width": 48, "max_sequence_length": 16, "output_type": "pt"}


def call() -> dict:
    return {**CALL, "negative_prompt": "a blue dog"}


def pictured() -> dict:
    return {**call(), "image": made.picture(48, 32), "strength": 0.8}


def plain() -> dict:
    """It takes no negative prompt: that is always the empty one."""
    return CALL


def guided() -> dict:
    """Flux is told of the guidance."""
    return {**CALL, "guidance_scale": 3.5}


def qwen(guider=modular.cfg):
    """The template's words are none of the word tokenizer's: only the last of them stay."""
    return modular.assembled(QwenImageModularPipeline, QwenImageAutoBlocks(), **image_qwen.parts(guider=guider()))


def z(guider=modular.cfg):
    return modular.assembled(ZImageModularPipeline, ZImageAutoBlocks(), **image_z.parts(guider=guider()))


def flux():
    return modular.assembled(FluxModularPipeline, FluxAutoBlocks(), **image_flux.parts())


def klein():
    """Reads the states after 9, 18 and 27 layers of its text encoder."""
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=3,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    own = {
        "transformer": made.stirred(transformer),
        "text_encoder": made.qwen3_text(layers=28, head=True),
        "guider": modular.cfg(),
    }
    return modular.assembled(
        Flux2KleinBaseModularPipeline, Flux2KleinBaseAutoBlocks(), **{**image_flux2.parts(), **own}
    )


def sd3(guider=modular.cfg):
    return modular.assembled(
        StableDiffusion3ModularPipeline, StableDiffusion3AutoBlocks(), **image_sd3.parts(guider=guider())
    )


#: Others fail: where whole blocks are skipped diffusers takes a text's states for a picture's.
COMMON = "no_guidance rescaled interval AdaptiveProjectedGuidance TangentialClassifierFreeGuidance"
QWEN = modular.guiders("transformer_blocks", f"{COMMON} MagnitudeAwareGuidance PerturbedAttentionGuidance")
Z = modular.guiders("layers", f"{COMMON} ClassifierFreeZeroStarGuidance PerturbedAttentionGuidance")
SD3 = modular.guiders("transformer_blocks", f"{COMMON} ClassifierFreeZeroStarGuidance")


def cases(name: str, build, guiders) -> None:
    """A pipeline's case, and one for every way of guiding."""
    modular.case(name, build, call)
    for guider, make in guiders.items():
        modular.case(f"{name}-{guider}", lambda make=make: build(make), call)


cases("QwenImageModularPipeline", qwen, QWEN)
cases("ZImageModularPipeline", z, Z)
cases("StableDiffusion3ModularPipeline", sd3, SD3)
modular.case("QwenImageModularPipeline-image", qwen, pictured)
modular.case("ZImageModularPipeline-image", z, pictured)
modular.case("FluxModularPipeline", flux, guided, batch={"prompt": made.TWO})
modular.case("Flux2KleinBaseModularPipeline", klein, plain, batch={"prompt": made.TWO})
