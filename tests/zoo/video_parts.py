"""What the cases of video pipelines with transformers share; it registers no case itself."""

from __future__ import annotations

import tiny
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from . import image_parts as made

NEGATIVE = "a blue dog"
TEXT = {"prompt": made.PROMPT, "negative_prompt": NEGATIVE, "output_type": "latent"}
#: A small video; Wan's VAE makes 3 latent frames of 4 by 4 of it.
SIZE = {"height": 32, "width": 32, "num_frames": 9}
OFF = {"guidance_scale": 1.0}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}


def video(frames: int = 9, height: int = 32, width: int = 32, seed: int = 60) -> list[Image.Image]:
    """Frames of random colours."""
    return [made.picture(width, height, seed + i) for i in range(frames)]


def clip_vision(width: int = 16, size: int = 16, seed: int = 61) -> CLIPVisionModelWithProjection:
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_hidden_layers": 3}
    config = CLIPVisionConfig(**sizes, image_size=size, patch_size=size // 2, projection_dim=width)
    return CLIPVisionModelWithProjection(config).eval()


def clip_processor(size: int = 16) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def wan_text() -> dict:
    return {"tokenizer": tiny.tokenizer(), "text_encoder": tiny.wan_text_encoder()}


def wan_parts(**others) -> dict:
    """A text encoder, a VAE and a scheduler like Wan's."""
    return {**wan_text(), "vae": tiny.wan_vae(), "scheduler": tiny.unipc(), **others}


def wan22_vae(channels: int = 16) -> AutoencoderKLWan:
    """Like the one of Wan 2.2's 5B model: pictures get smaller by 16 with their patches of 2."""
    torch.manual_seed(62)
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        scale_factor_spatial=16,
        temperal_downsample=[False, True, True],
    ).eval()
