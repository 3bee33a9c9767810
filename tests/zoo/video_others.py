"""Mochi, Allegro, Latte, EasyAnimate.

EasyAnimateControlPipeline is not here: it gives ``encode_prompt`` an argument that this does not take.
"""

from __future__ import annotations

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    DDIMScheduler,
    EasyAnimateInpaintPipeline,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    EulerAncestralDiscreteScheduler,
    LattePipeline,
    LatteTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from . import image_parts as made
from . import video_parts as parts
from .base import Case

CALL = {**parts.TEXT, **parts.SIZE, "guidance_scale": 4.5}
PLAIN = {"clean_caption": False}  # cleaning asks for a package more


def mochi() -> dict:
    torch.manual_seed(0)
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=8,
        max_sequence_length=16,
    )
    transformer.pos_frequencies.data.normal_(std=0.1)  # zeros would give every token the same position
    torch.manual_seed(1)
    vae = AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
        latents_mean=[0.0] * 12,
        latents_std=[1.0] * 12,
    )
    return {
        "transformer": made.stirred(transformer),
        "vae": vae.eval(),
        "scheduler": made.flow(1.0, invert_sigmas=True),
        "text_encoder": made.t5_text(),
        "tokenizer": made.tokenizer(),
    }


def allegro() -> dict:
    torch.manual_seed(0)
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        cross_attention_dim=48,
        sample_width=4,
        sample_height=4,
        sample_frames=2,
        caption_channels=32,
    )
    torch.manual_seed(1)
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return {
        "transformer": made.stirred(transformer),
        "vae": vae.eval(),
        "scheduler": EulerAncestralDiscreteScheduler(
            beta_start=0.0001, beta_end=0.02, prediction_type="epsilon", timestep_spacing="trailing"
        ),
        "text_encoder": made.t5_text(),
        "tokenizer": made.tokenizer(),
    }


def latte() -> dict:
    torch.manual_seed(0)
    transformer = LatteTransformer3DModel(
        sample_size=4,
        num_layers=4,
        patch_size=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,  # the noise and its variance
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=4,
    )
    return {
        "transformer": made.stirred(transformer),
        "vae": made.kl_vae(4, levels=4),
        "scheduler": DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False),
        "text_encoder": made.t5_text(),
        "tokenizer": made.tokenizer(),
    }


def easy_text() -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(2)
    text = {
        **made.decoder_sizes(16, 3),
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).eval()


def easy(channels: int = 4) -> dict:
    torch.manual_seed(0)
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=4,
        mmdit_layers=3,  # the last one has the same weights for text and video
        sample_width=4,
        sample_height=4,
        patch_size=2,
        add_norm_text_encoder=True,
        resize_inpaint_mask_directly=False,  # asks for what the VAE's configuration does not have
    )
    torch.manual_seed(1)
    vae = AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    return {
        "transformer": made.stirred(transformer),
        "vae": vae.eval(),
        "scheduler": made.flow(1.0),
        "text_encoder": easy_text(),
        "tokenizer": made.tokenizer(template=made.LAST.replace("said[-1]", "said[0]")),
    }


def clip() -> torch.Tensor:
    """Nine frames between 0 and 1."""
    return torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(64))


def left_half() -> torch.Tensor:
    """What is to be painted, in 0 to 255."""
    mask = torch.zeros(1, 1, 9, 32, 32)
    mask[..., :16] = 255
    return mask


Case(
    "MochiPipeline",
    build=lambda: made.quiet(MochiPipeline(**mochi())),
    call=lambda: {**CALL, "num_frames": 13, "max_sequence_length": 16},
    guidance=parts.OFF,
    batch=parts.BATCH,
)
Case(
    "AllegroPipeline",
    build=lambda: made.quiet(AllegroPipeline(**allegro())),
    call=lambda: {**CALL, **PLAIN, "num_frames": 8, "max_sequence_length": 16},
    guidance=parts.OFF,
    batch=parts.BATCH,
)
Case(
    "LattePipeline",
    build=lambda: made.quiet(LattePipeline(**latte())),
    call=lambda: {**parts.TEXT, **PLAIN, "guidance_scale": 7.5, "height": 32, "width": 32, "video_length": 4},
    guidance=parts.OFF,
    batch=parts.BATCH,
)
Case(
    "EasyAnimatePipeline",
    build=lambda: made.quiet(EasyAnimatePipeline(**easy())),
    call=lambda: {**CALL, "guidance_rescale": 0.5},
    guidance=parts.OFF,
    batch=parts.BATCH,
)
Case(
    "EasyAnimateInpaintPipeline",  # beside the noise a mask and what is not masked
    build=lambda: made.quiet(EasyAnimateInpaintPipeline(**easy(12))),
    call=lambda: {**CALL, "video": clip(), "mask_video": left_half()},
    guidance=parts.OFF,
    batch={**parts.BATCH, "video": clip().repeat(2, 1, 1, 1, 1), "mask_video": left_half().repeat(2, 1, 1, 1, 1)},
)
