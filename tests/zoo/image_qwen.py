"""Qwen-Image: text to image, image to image, inpainting, ControlNet, editing, layers, 2.1."""

from __future__ import annotations

import tiny
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageControlNetInpaintPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImageLayeredPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from . import image_parts as made
from .base import Case

CALL = {
    "prompt": made.PROMPT,
    "negative_prompt": "a blue dog",
    "true_cfg_scale": 4.0,
    "height": 32,
    "width": 48,
    "max_sequence_length": 16,
    "output_type": "latent",
}
EDIT = {k: v for k, v in CALL.items() if k != "max_sequence_length"}
#: These set the size by themselves.
UNSIZED = {k: v for k, v in EDIT.items() if k not in ("height", "width")}
OFF = {"negative_prompt": None, "true_cfg_scale": 1.0}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}


def untold(pipe, template: str = "{}"):
    """The released templates' words are none of the word tokenizer's."""
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = template, 0
    return made.quiet(pipe)


def parts(**others) -> dict:
    return {
        "scheduler": tiny.qwen_scheduler(),
        "vae": tiny.qwen_vae(),
        "text_encoder": tiny.qwen_text_encoder(),
        "tokenizer": tiny.tokenizer(),
        "transformer": made.stirred(tiny.qwen_transformer()),
        **others,
    }


def controlnet(extra: int = 0) -> QwenImageControlNetModel:
    torch.manual_seed(1)
    model = QwenImageControlNetModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        extra_condition_channels=extra,
    )
    return made.stirred(model, 101)


def seeing_text() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(4)
    text = {
        **made.decoder_sizes(16),
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "bos_token_id": None,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **made.SEEN_IDS)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def deep_vae(channels: int = 4, **config) -> AutoencoderKLQwenImage:
    """Makes pictures 32 times smaller: the editing pipelines enlarge theirs to 1024 by 1024.

    Without biases, which would drown what little is left of the latents after so many layers.
    """
    torch.manual_seed(5)
    vae = AutoencoderKLQwenImage(
        base_dim=2,
        z_dim=channels,
        dim_mult=[1] * 6,
        num_res_blocks=0,
        temperal_downsample=[False] * 5,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        **config,
    )
    with torch.no_grad():
        for name, value in vae.named_parameters():
            if name.endswith("bias"):
                value.zero_()
    return vae.eval()


def edit_parts(**others) -> dict:
    seeing = {"tokenizer": made.seeing_tokenizer(), "processor": made.Processor(), "text_encoder": seeing_text()}
    return parts(vae=deep_vae(), **seeing, **others)


def layered_parts() -> dict:
    """Pictures have an alpha channel, positions a third dimension.

    Eight latent channels: a picture of four would be taken for latents of four.
    """
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=32,
        out_channels=8,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        use_additional_t_cond=True,
        use_layer3d_rope=True,
    )
    return {**edit_parts(transformer=made.stirred(transformer)), "vae": deep_vae(8, input_channels=4)}


def image() -> dict:
    return {"image": made.picture(48, 32)}


def control() -> dict:
    return {"control_image": made.picture(48, 32), "controlnet_conditioning_scale": 0.7}


Case(
    "QwenImagePipeline",
    build=lambda: untold(QwenImagePipeline(**parts())),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "QwenImageImg2ImgPipeline",
    build=lambda: untold(QwenImageImg2ImgPipeline(**parts())),
    call=lambda: {**CALL, **image(), "strength": 0.8},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "QwenImageInpaintPipeline",
    build=lambda: untold(QwenImageInpaintPipeline(**parts())),
    call=lambda: {**CALL, **image(), "mask_image": made.mask(48, 32), "strength": 0.8},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "QwenImageControlNetPipeline",
    build=lambda: untold(QwenImageControlNetPipeline(**parts(controlnet=controlnet()))),
    call=lambda: {**CALL, **control()},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "QwenImageControlNetInpaintPipeline",  # the mask is packed by four too
    build=lambda: untold(QwenImageControlNetInpaintPipeline(**parts(controlnet=controlnet(extra=4)))),
    call=lambda: {**CALL, **control(), "control_mask": made.mask(48, 32)},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "QwenImageEditPipeline",
    build=lambda: untold(QwenImageEditPipeline(**edit_parts()), made.SEEN + "{}"),
    call=lambda: {**EDIT, **image(), "height": 256, "width": 384},
    guidance=OFF,
)
Case(
    "QwenImageEditInpaintPipeline",
    build=lambda: untold(QwenImageEditInpaintPipeline(**edit_parts()), made.SEEN + "{}"),
    call=lambda: {**UNSIZED, **image(), "mask_image": made.mask(48, 32), "strength": 0.8},
    guidance=OFF,
)
Case(
    "QwenImageEditPlusPipeline",
    build=lambda: untold(QwenImageEditPlusPipeline(**edit_parts()), "{}"),
    call=lambda: {**EDIT, "image": [made.picture(), made.picture(seed=17)], "height": 256, "width": 384},
    guidance=OFF,
)
Case(
    "QwenImageLayeredPipeline",
    build=lambda: untold(QwenImageLayeredPipeline(**layered_parts())),
    call=lambda: {**UNSIZED, "image": made.picture(48, 32).convert("RGBA"), "layers": 2, "output_type": "pt"},
    guidance=OFF,
)
