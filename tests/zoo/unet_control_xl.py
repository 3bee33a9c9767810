"""ControlNet and ControlNet-Union around Stable Diffusion XL."""

from __future__ import annotations

import torch
from diffusers import (
    ControlNetUnionModel,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPAGImg2ImgPipeline,
    StableDiffusionXLControlNetPAGPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionImg2ImgPipeline,
    StableDiffusionXLControlNetUnionInpaintPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)

from .unet_control import BOTH_MASKED, HINT, HINTS, MASKED, NO_PAG, PAG, PICTURE, PICTURES, controlnet
from .unet_parts import BATCH, TEXT, case, picture, stirred, xl_parts, xl_unet

#: What ControlNets have in common with XL's U-Net.
SHAPE = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": (1, 2),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 40,
    "cross_attention_dim": 32,
    "conditioning_embedding_out_channels": (8, 16),
}


def parts(**more):
    return xl_parts(controlnet=controlnet(**SHAPE), **more)


def union(seed: int = 58) -> ControlNetUnionModel:
    """One ControlNet for six kinds of hints, told which."""
    torch.manual_seed(seed)
    extra = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
    return stirred(ControlNetUnionModel(**SHAPE, **extra), seed)


def union_parts(**more):
    return xl_parts(controlnet=union(), **more)


case(
    "StableDiffusionXLControlNetPipeline",
    StableDiffusionXLControlNetPipeline,
    parts,
    {**TEXT, "image": HINT},
    batch={**BATCH, "image": HINTS},
)
case(
    "StableDiffusionXLControlNetPAGPipeline",
    StableDiffusionXLControlNetPAGPipeline,
    parts,
    {**TEXT, **PAG, "image": HINT},
    guidance=NO_PAG,
    batch={**BATCH, "image": HINTS},
)
case(
    "StableDiffusionXLControlNetImg2ImgPipeline",
    StableDiffusionXLControlNetImg2ImgPipeline,
    parts,
    {**TEXT, **PICTURE},
    batch=PICTURES,
)
case(
    "StableDiffusionXLControlNetPAGImg2ImgPipeline",
    StableDiffusionXLControlNetPAGImg2ImgPipeline,
    parts,
    {**TEXT, **PAG, **PICTURE},
    # The one guidance only: this pipeline leaves its attention perturbed, so that no later call can do without.
    batch=PICTURES,
)
case(
    "StableDiffusionXLControlNetInpaintPipeline",
    StableDiffusionXLControlNetInpaintPipeline,
    lambda: parts(denoiser=xl_unet(channels=9)),
    {**TEXT, **MASKED},
    batch=BOTH_MASKED,
)
KIND = {"control_mode": 2}
case(
    "StableDiffusionXLControlNetUnionPipeline",
    StableDiffusionXLControlNetUnionPipeline,
    union_parts,
    {**TEXT, **KIND, "control_image": HINT},
    batch={**BATCH, "control_image": HINTS},
)
case(
    "StableDiffusionXLControlNetUnionPipeline-two-hints",
    StableDiffusionXLControlNetUnionPipeline,
    union_parts,
    {**TEXT, "control_mode": [0, 3], "control_image": [HINT, picture(seed=53)]},
    batch=None,
)
case(
    "StableDiffusionXLControlNetUnionImg2ImgPipeline",
    StableDiffusionXLControlNetUnionImg2ImgPipeline,
    union_parts,
    {**TEXT, **KIND, **PICTURE},
    batch=PICTURES,
)
case(
    "StableDiffusionXLControlNetUnionInpaintPipeline",
    StableDiffusionXLControlNetUnionInpaintPipeline,
    union_parts,
    {**TEXT, **KIND, **MASKED},
    batch=BOTH_MASKED,
)
