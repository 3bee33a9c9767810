"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

import torch
from diffusers import (
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGImg2ImgPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)

from . import image_parts as made
from .base import Case

SIZES = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 24,
}
CALL = {
    "prompt": made.PROMPT,
    "negative_prompt": "a blue dog",
    "guidance_scale": 5.0,
    "height": 32,
    "width": 48,
    "max_sequence_length": 16,
    "output_type": "latent",
}
OFF = {"guidance_scale": 1.0}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}


def transformer(seed: int = 0, **config) -> SD3Transformer2DModel:
    torch.manual_seed(seed)
    return made.stirred(SD3Transformer2DModel(num_layers=4, **SIZES, **config))


def sd35() -> SD3Transformer2DModel:
    """As 3.5 medium has it: normed queries and keys, a second attention in the first blocks."""
    return transformer(qk_norm="rms_norm", dual_attention_layers=(0, 1))


def controlnet(**config) -> SD3ControlNetModel:
    torch.manual_seed(1)
    return made.stirred(SD3ControlNetModel(num_layers=2, **SIZES, **config), 101)


def parts(**others) -> dict:
    """The two CLIP encoders' pooled states are joined to 32 numbers."""
    vae = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, "scaling_factor": 1.5}
    return {
        "scheduler": made.flow(3.0),
        "vae": made.kl_vae(4, **vae),
        "text_encoder": made.clip_text(11, width=16, projected=True),
        "tokenizer": made.tokenizer(77),
        "text_encoder_2": made.clip_text(21, width=16, projected=True),
        "tokenizer_2": made.tokenizer(77),
        "text_encoder_3": made.t5_text(),
        "tokenizer_3": made.tokenizer(64),
        "transformer": transformer(),
        **others,
    }


def sixteen() -> dict:
    """Inpainting insists on the released models' sixteen channels."""
    vae = made.kl_vae(16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)
    torch.manual_seed(0)
    model = SD3Transformer2DModel(num_layers=4, **{**SIZES, "in_channels": 16, "out_channels": 16})
    return parts(transformer=made.stirred(model), vae=vae)


def image() -> dict:
    return {"image": made.picture(48, 32), "strength": 0.8}


Case(
    "StableDiffusion3Pipeline",
    build=lambda: made.quiet(StableDiffusion3Pipeline(**parts())),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "StableDiffusion3Pipeline-3.5",
    build=lambda: made.quiet(StableDiffusion3Pipeline(**parts(transformer=sd35()))),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "StableDiffusion3Pipeline-skip-layer",  # one more call, of less blocks, at some steps
    build=lambda: made.quiet(StableDiffusion3Pipeline(**parts(transformer=sd35()))),
    call=lambda: {
        **CALL,
        "skip_guidance_layers": [1, 2],
        "skip_layer_guidance_start": 0.1,
        "skip_layer_guidance_stop": 0.7,
    },
    guidance={"guidance_scale": 1.0, "skip_guidance_layers": None},
    batch=BATCH,
)
Case(
    "StableDiffusion3Img2ImgPipeline",
    build=lambda: made.quiet(StableDiffusion3Img2ImgPipeline(**parts())),
    call=lambda: {**CALL, **image()},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "StableDiffusion3InpaintPipeline",
    build=lambda: made.quiet(StableDiffusion3InpaintPipeline(**sixteen())),
    call=lambda: {**CALL, **image(), "mask_image": made.mask(48, 32)},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "StableDiffusion3ControlNetPipeline",
    build=lambda: made.quiet(StableDiffusion3ControlNetPipeline(**parts(controlnet=controlnet()))),
    call=lambda: {**CALL, "control_image": made.picture(48, 32), "controlnet_conditioning_scale": 0.7},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "StableDiffusion3ControlNetInpaintingPipeline",
    build=lambda: made.quiet(
        StableDiffusion3ControlNetInpaintingPipeline(**parts(controlnet=controlnet(extra_conditioning_channels=1)))
    ),
    call=lambda: {
        **CALL,
        "control_image": made.picture(48, 32),
        "control_mask": made.mask(48, 32),
        "controlnet_conditioning_scale": 0.7,
    },
    guidance=OFF,
    batch=BATCH,
)
Case(
    "StableDiffusion3PAGPipeline",
    build=lambda: made.quiet(StableDiffusion3PAGPipeline(**parts(), pag_applied_layers=["blocks.1"])),
    call=lambda: {**CALL, "pag_scale": 2.0},
    guidance={"guidance_scale": 1.0, "pag_scale": 0.0},
    batch=BATCH,
)
Case(
    "StableDiffusion3PAGImg2ImgPipeline",
    build=lambda: made.quiet(StableDiffusion3PAGImg2ImgPipeline(**parts(), pag_applied_layers=["blocks.1"])),
    call=lambda: {**CALL, **image(), "pag_scale": 2.0},
    guidance={"guidance_scale": 1.0, "pag_scale": 0.0},
    batch=BATCH,
)
