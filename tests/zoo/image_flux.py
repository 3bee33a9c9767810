"""FLUX.1: text to image, image to image, inpainting, fill, control, ControlNet, Kontext."""

from __future__ import annotations

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxControlImg2ImgPipeline,
    FluxControlInpaintPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)

from . import image_parts as made
from .base import Case

SIZES = {
    "patch_size": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}
CALL = {"prompt": made.PROMPT, "height": 32, "width": 48, "max_sequence_length": 16, "output_type": "latent"}
TRUE_CFG = {"negative_prompt": "a blue dog", "true_cfg_scale": 3.0, "guidance_scale": 3.5}
NO_CFG = {"negative_prompt": None, "true_cfg_scale": 1.0}

TWO_CFG = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As FLUX.1-dev has it: shifted by the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15, base_image_seq_len=256
    )


def transformer(in_channels: int = 16, *, guided: bool = True, seed: int = 0) -> FluxTransformer2DModel:
    torch.manual_seed(seed)
    model = FluxTransformer2DModel(
        in_channels=in_channels, out_channels=16, num_layers=3, num_single_layers=3, guidance_embeds=guided, **SIZES
    )
    return made.stirred(model)


def parts(in_channels: int = 16, *, guided: bool = True) -> dict:
    """What every pipeline of the family takes; the latents have four channels, packed by four."""
    return {
        "scheduler": scheduler(),
        "vae": made.kl_vae(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.4),
        "text_encoder": made.clip_text(),
        "tokenizer": made.tokenizer(77),
        "text_encoder_2": made.t5_text(),
        "tokenizer_2": made.tokenizer(64),
        "transformer": transformer(in_channels, guided=guided),
    }


def controlnet() -> FluxControlNetModel:
    torch.manual_seed(1)
    model = FluxControlNetModel(in_channels=16, num_layers=2, num_single_layers=2, guidance_embeds=True, **SIZES)
    return made.stirred(model, 101)


def image() -> dict:
    return {"image": made.picture(48, 32)}


def masked() -> dict:
    return {**image(), "mask_image": made.mask(48, 32)}


def control() -> dict:
    return {"control_image": made.picture(48, 32, seed=15)}


Case(
    "FluxPipeline",
    build=lambda: made.quiet(FluxPipeline(**parts())),
    call=lambda: {**CALL, **TRUE_CFG},
    guidance=NO_CFG,
    batch=TWO_CFG,
)
Case(
    "FluxPipeline-distilled",  # as FLUX.1-schnell: no guidance at all, timesteps that are not shifted
    build=lambda: made.quiet(FluxPipeline(**{**parts(guided=False), "scheduler": FlowMatchEulerDiscreteScheduler()})),
    call=lambda: {**CALL, "guidance_scale": 0.0},
    batch={"prompt": made.TWO},
)
Case(
    "FluxImg2ImgPipeline",
    build=lambda: made.quiet(FluxImg2ImgPipeline(**parts())),
    call=lambda: {**CALL, **TRUE_CFG, **image(), "strength": 0.8},
    guidance=NO_CFG,
    batch=TWO_CFG,
)
Case(
    "FluxInpaintPipeline",
    build=lambda: made.quiet(FluxInpaintPipeline(**parts())),
    call=lambda: {**CALL, **TRUE_CFG, **masked(), "strength": 0.8},
    guidance=NO_CFG,
    batch=TWO_CFG,
)
Case(
    "FluxFillPipeline",  # packed latents, the masked picture's, and the mask of each latent pixel
    build=lambda: made.quiet(FluxFillPipeline(**parts(16 + 16 + 4 * 2 * 2))),
    call=lambda: {**CALL, **masked(), "guidance_scale": 30.0},
    batch={"prompt": made.TWO},
)
Case(
    "FluxControlPipeline",
    build=lambda: made.quiet(FluxControlPipeline(**parts(32))),
    call=lambda: {**CALL, **control(), "guidance_scale": 10.0},
    batch={"prompt": made.TWO},
)
Case(
    "FluxControlImg2ImgPipeline",
    build=lambda: made.quiet(FluxControlImg2ImgPipeline(**parts(32))),
    call=lambda: {**CALL, **image(), **control(), "strength": 0.8, "guidance_scale": 10.0},
    batch={"prompt": made.TWO},
)
Case(
    "FluxControlInpaintPipeline",
    build=lambda: made.quiet(FluxControlInpaintPipeline(**parts(32))),
    call=lambda: {**CALL, **masked(), **control(), "strength": 0.8, "guidance_scale": 10.0},
    batch={"prompt": made.TWO},
)
Case(
    "FluxControlNetPipeline",
    build=lambda: made.quiet(FluxControlNetPipeline(**parts(), controlnet=controlnet())),
    call=lambda: {**CALL, **TRUE_CFG, **control(), "controlnet_conditioning_scale": 0.7},
    guidance=NO_CFG,
    batch=TWO_CFG,
)
Case(
    "FluxControlNetImg2ImgPipeline",
    build=lambda: made.quiet(FluxControlNetImg2ImgPipeline(**parts(), controlnet=controlnet())),
    call=lambda: {**CALL, **image(), **control(), "strength": 0.8, "controlnet_conditioning_scale": 0.7},
    batch={"prompt": made.TWO},
)
Case(
    "FluxControlNetInpaintPipeline",
    build=lambda: made.quiet(FluxControlNetInpaintPipeline(**parts(), controlnet=controlnet())),
    call=lambda: {**CALL, **masked(), **control(), "strength": 0.8, "controlnet_conditioning_scale": 0.7},
    batch={"prompt": made.TWO},
)
Case(
    "FluxKontextPipeline",
    build=lambda: made.quiet(FluxKontextPipeline(**parts())),
    call=lambda: {**CALL, **TRUE_CFG, **image(), "max_area": 32 * 48, "_auto_resize": False},
    guidance=NO_CFG,
    batch=TWO_CFG,
)
Case(
    "FluxKontextInpaintPipeline",
    build=lambda: made.quiet(FluxKontextInpaintPipeline(**parts())),
    call=lambda: {
        **CALL,
        **TRUE_CFG,
        **masked(),
        "image_reference": made.picture(48, 32, seed=16),
        "max_area": 32 * 48,
        "_auto_resize": False,
        "strength": 0.8,
    },
    guidance=NO_CFG,
    batch=TWO_CFG,
)
