"""DeepFloyd IF: pixels, not latents; a T5's text attended to together with the picture; a learned variance."""

from __future__ import annotations

import torch
from diffusers import (
    DDPMScheduler,
    IFImg2ImgPipeline,
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    UNet2DConditionModel,
)

from .unet_parts import BATCH, PROMPTS, case, half_mask, loud, picture, short_tokenizer, t5

TEXT = {
    "prompt": PROMPTS[0],
    "negative_prompt": "red",
    "guidance_scale": 5.0,
    "clean_caption": False,  # cleaning needs a package more
    "output_type": "pt",
}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}


def scheduler(**config) -> DDPMScheduler:
    thresholds = {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5}
    return DDPMScheduler(**COSINE, **thresholds, variance_type="learned_range", **config)


def unet(seed: int = 70, **config) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    made = UNet2DConditionModel(
        **{
            "sample_size": 16,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "in_channels": 3,
            "out_channels": 6,
            "cross_attention_dim": 32,  # normalised in 32 groups
            "encoder_hid_dim": 16,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 2,
            "cross_attention_norm": "group_norm",
            "resnet_time_scale_shift": "scale_shift",
            "act_fn": "gelu",
            **config,
        }
    )
    return loud(made)


def first_stage():
    return {
        "tokenizer": short_tokenizer(),
        "text_encoder": t5(),
        "unet": unet(),
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }


def second_stage():
    """The small picture is beside the noisy one, and the noise that was added to it in the time's embedding."""
    denoiser = unet(71, in_channels=6, class_embed_type="timestep", mid_block_scale_factor=1.414)
    return {**first_stage(), "unet": denoiser, "image_noising_scheduler": DDPMScheduler(**COSINE)}


PICTURE = {"image": picture(), "strength": 0.8}
PICTURES = {**BATCH, "image": picture(count=2)}
MASK = {"mask_image": half_mask()}
MASKS = {"mask_image": half_mask(count=2)}
SMALL = {"image": picture(8, 8), "noise_level": 100}
SMALLS = {**BATCH, "image": picture(8, 8, count=2)}
ORIGINAL = {"original_image": picture(seed=72), "strength": 0.8}
ORIGINALS = {"original_image": picture(seed=72, count=2)}

case("IFPipeline", IFPipeline, first_stage, {**TEXT, "height": 16, "width": 16})
case("IFImg2ImgPipeline", IFImg2ImgPipeline, first_stage, {**TEXT, **PICTURE}, batch=PICTURES)
case(
    "IFInpaintingPipeline",
    IFInpaintingPipeline,
    first_stage,
    {**TEXT, **PICTURE, **MASK},
    batch={**PICTURES, **MASKS},
)
case(
    "IFSuperResolutionPipeline",
    IFSuperResolutionPipeline,
    second_stage,
    {**TEXT, **SMALL, "height": 16, "width": 16},
    batch=SMALLS,
)
case(
    "IFImg2ImgSuperResolutionPipeline",
    IFImg2ImgSuperResolutionPipeline,
    second_stage,
    {**TEXT, **SMALL, **ORIGINAL},
    batch={**SMALLS, **ORIGINALS},
)
case(
    "IFInpaintingSuperResolutionPipeline",
    IFInpaintingSuperResolutionPipeline,
    second_stage,
    {**TEXT, **SMALL, **ORIGINAL, **MASK},
    batch={**SMALLS, **ORIGINALS, **MASKS},
)
