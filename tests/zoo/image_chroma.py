"""Chroma: FLUX.1 without guidance embedded, with real classifier-free guidance."""

from __future__ import annotations

import torch
from diffusers import ChromaImg2ImgPipeline, ChromaInpaintPipeline, ChromaPipeline, ChromaTransformer2DModel

from . import image_parts as made
from .base import Case

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


def transformer(seed: int = 0) -> ChromaTransformer2DModel:
    torch.manual_seed(seed)
    model = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=3,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=2,
    )
    return made.stirred(model)


def parts() -> dict:
    return {
        "scheduler": made.flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        "vae": made.kl_vae(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.4),
        "text_encoder": made.t5_text(),
        "tokenizer": made.tokenizer(64),
        "transformer": transformer(),
    }


def inpaint() -> ChromaInpaintPipeline:
    """The pipeline asks for a setting that this transformer's configuration does not have."""
    pipe = made.quiet(ChromaInpaintPipeline(**parts()))
    pipe.transformer.register_to_config(guidance_embeds=False)
    return pipe


Case(
    "ChromaPipeline",
    build=lambda: made.quiet(ChromaPipeline(**parts())),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "ChromaImg2ImgPipeline",
    build=lambda: made.quiet(ChromaImg2ImgPipeline(**parts())),
    call=lambda: {**CALL, "image": made.picture(48, 32), "strength": 0.8},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "ChromaInpaintPipeline",
    build=inpaint,
    call=lambda: {**CALL, "image": made.picture(48, 32), "mask_image": made.mask(48, 32), "strength": 0.8},
    guidance=OFF,
    batch=BATCH,
)
