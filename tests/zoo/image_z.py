"""Z-Image: text to image, image to image, inpainting, ControlNet, omni."""

from __future__ import annotations

import torch
from diffusers import (
    ZImageControlNetInpaintPipeline,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImageOmniPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import BatchFeature, Siglip2VisionConfig, Siglip2VisionModel

from . import image_parts as made
from .base import Case

CALL = {
    "prompt": made.PROMPT,
    "negative_prompt": "a blue dog",
    "guidance_scale": 4.0,
    "height": 32,
    "width": 48,
    "max_sequence_length": 16,
    "output_type": "latent",
}
OFF = {"guidance_scale": 0.0}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}
SIZES = {"dim": 32, "n_heads": 2, "n_kv_heads": 2}


def transformer(seed: int = 0, **config) -> ZImageTransformer2DModel:
    torch.manual_seed(seed)
    model = ZImageTransformer2DModel(
        in_channels=16,
        n_layers=4,
        n_refiner_layers=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 64, 64],
        **SIZES,
        **config,
    )
    with torch.no_grad():  # these are not initialized
        for name, value in model.named_parameters():
            if name.endswith("pad_token"):
                value.normal_(std=0.1)
    return made.stirred(model)


def controlnet(channels: int = 16) -> ZImageControlNetModel:
    """Joins its hints to every second block; borrows the embedders of the transformer."""
    torch.manual_seed(1)
    model = ZImageControlNetModel(
        control_layers_places=[0, 2],
        control_refiner_layers_places=[0, 1],
        control_in_dim=channels,
        add_control_noise_refiner="control_noise_refiner",
        n_refiner_layers=2,
        **SIZES,
    )
    return made.stirred(model, 101)


def parts(**others) -> dict:
    return {
        "scheduler": made.flow(3.0),
        "vae": made.kl_vae(16, shift_factor=0.1, scaling_factor=0.4),
        "text_encoder": made.qwen3_text(),
        "tokenizer": made.tokenizer(64, made.CHAT),
        "transformer": transformer(),
        **others,
    }


class SiglipProcessor:
    """Transformers' own needs torchvision: this one makes every picture 4 by 4 patches."""

    def __call__(self, images, return_tensors="pt") -> BatchFeature:
        values = [torch.tensor(list(one.convert("RGB").resize((16, 16)).tobytes())) for one in images]
        patches = torch.stack(values).reshape(len(images), 16, 48) / 127.5 - 1
        shapes = torch.tensor([[4, 4]] * len(images))
        masks = torch.ones(len(images), 16, dtype=torch.long)
        return BatchFeature({"pixel_values": patches, "pixel_attention_mask": masks, "spatial_shapes": shapes})


def siglip() -> Siglip2VisionModel:
    torch.manual_seed(2)
    config = Siglip2VisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_patches=16,
        patch_size=4,
    )
    return Siglip2VisionModel(config).eval()


def omni() -> dict:
    """The pipeline gives its pictures to the autoencoder in bfloat16, whatever the autoencoder has."""
    vae = made.kl_vae(16, shift_factor=0.1, scaling_factor=0.4).to(torch.bfloat16)
    return parts(
        vae=vae, transformer=transformer(siglip_feat_dim=16), siglip=siglip(), siglip_processor=SiglipProcessor()
    )


def image() -> dict:
    return {"image": made.picture(48, 32)}


Case(
    "ZImagePipeline",
    build=lambda: made.quiet(ZImagePipeline(**parts())),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "ZImagePipeline-truncated",  # guidance ends before the last steps, its length is bounded
    build=lambda: made.quiet(ZImagePipeline(**parts())),
    call=lambda: {**CALL, "cfg_truncation": 0.6, "cfg_normalization": True},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "ZImageImg2ImgPipeline",
    build=lambda: made.quiet(ZImageImg2ImgPipeline(**parts())),
    call=lambda: {**CALL, **image(), "strength": 0.8},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "ZImageInpaintPipeline",
    build=lambda: made.quiet(ZImageInpaintPipeline(**parts())),
    call=lambda: {**CALL, **image(), "mask_image": made.mask(48, 32), "strength": 0.8},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "ZImageControlNetPipeline",
    build=lambda: made.quiet(ZImageControlNetPipeline(**parts(controlnet=controlnet()))),
    call=lambda: {**CALL, "control_image": made.picture(48, 32, 17)},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "ZImageControlNetInpaintPipeline",  # latents of the hint, the mask, latents of the masked picture
    build=lambda: made.quiet(ZImageControlNetInpaintPipeline(**parts(controlnet=controlnet(33)))),
    call=lambda: {
        **CALL,
        **image(),
        "mask_image": made.mask(48, 32),
        "control_image": made.picture(48, 32, 17),
    },
    guidance=OFF,
    batch={**BATCH, "mask_image": [made.mask(48, 32)] * 2},
)
Case(
    "ZImageOmniPipeline",
    build=lambda: made.quiet(ZImageOmniPipeline(**omni())),
    call=lambda: {**CALL, "image": [made.picture(96, 64), made.picture(64, 64, 17)]},
    guidance=OFF,  # and no two prompts: the pipeline takes no list of them
)
