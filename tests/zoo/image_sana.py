"""Sana: linear attention, an autoencoder of its own; Sprint's one or few steps, ControlNet, PAG."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaPAGPipeline,
    SanaPipeline,
    SanaSprintImg2ImgPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)

from . import image_parts as made
from .base import Case

SIZES = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 16,
    "sample_size": 32,
}
ONCE = {
    "prompt": made.PROMPT,
    "height": 32,
    "width": 64,
    "max_sequence_length": 16,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
    "output_type": "latent",
}
CALL = {**ONCE, "negative_prompt": "a blue dog", "guidance_scale": 4.5}
OFF = {"guidance_scale": 1.0}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}


def transformer(seed: int = 0, **config) -> SanaTransformer2DModel:
    torch.manual_seed(seed)
    return made.stirred(SanaTransformer2DModel(num_layers=4, **SIZES, **config))


def sprint() -> SanaTransformer2DModel:
    """Takes the guidance as a number, and norms its queries and keys."""
    return transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads")


def controlnet() -> SanaControlNetModel:
    torch.manual_seed(1)
    return made.stirred(SanaControlNetModel(num_layers=2, **SIZES), 101)


def vae() -> AutoencoderDC:
    torch.manual_seed(2)
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.4,
    ).eval()


def parts(**others) -> dict:
    return {
        "tokenizer": made.tokenizer(64),
        "text_encoder": made.gemma2_text(),
        "vae": vae(),
        "transformer": transformer(),
        "scheduler": DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
        **others,
    }


Case(
    "SanaPipeline",
    build=lambda: made.quiet(SanaPipeline(**parts())),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "SanaPipeline-euler",
    build=lambda: made.quiet(SanaPipeline(**parts(scheduler=made.flow(3.0)))),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "SanaPAGPipeline",
    build=lambda: made.quiet(SanaPAGPipeline(**parts(), pag_applied_layers=["transformer_blocks.1"])),
    call=lambda: {**CALL, "pag_scale": 2.0},
    guidance={"guidance_scale": 1.0, "pag_scale": 0.0},
    batch=BATCH,
)
Case(
    "SanaControlNetPipeline",
    build=lambda: made.quiet(SanaControlNetPipeline(**parts(controlnet=controlnet()))),
    call=lambda: {**CALL, "control_image": made.picture(64, 32), "controlnet_conditioning_scale": 0.7},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "SanaSprintPipeline",
    build=lambda: made.quiet(SanaSprintPipeline(**parts(transformer=sprint(), scheduler=SCMScheduler()))),
    call=lambda: {**ONCE, "guidance_scale": 4.5, "intermediate_timesteps": None},
    batch={"prompt": made.TWO},
)
Case(
    "SanaSprintImg2ImgPipeline",
    build=lambda: made.quiet(SanaSprintImg2ImgPipeline(**parts(transformer=sprint(), scheduler=SCMScheduler()))),
    call=lambda: {
        **ONCE,
        "guidance_scale": 4.5,
        "intermediate_timesteps": None,
        "image": made.picture(64, 32),
        "strength": 0.8,
    },
    batch={"prompt": made.TWO},
)
