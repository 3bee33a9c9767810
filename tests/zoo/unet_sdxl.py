"""Stable Diffusion XL, and Kolors with its one large language model in the place of two CLIP encoders."""

from __future__ import annotations

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
)

# Not from diffusers itself, which hides them where sentencepiece, of the released tokenizer, is missing.
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
from diffusers.pipelines.kolors.pipeline_kolors_img2img import KolorsImg2ImgPipeline
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from transformers import PreTrainedTokenizerFast

from .unet_parts import (
    BATCH,
    BETAS,
    PROMPTS,
    SIZE,
    TEXT,
    case,
    euler,
    half_mask,
    kl_vae,
    picture,
    short_tokenizer,
    xl_parts,
    xl_unet,
)

PICTURE = {"image": picture()}
PICTURES = {**BATCH, "image": picture(count=2)}


def xl(variant="", scheduler=None, denoiser=None, **call):
    """Text to picture, with other solvers and other guidance."""

    def parts():
        return xl_parts(scheduler() if scheduler else None, denoiser() if denoiser else None)

    case(f"StableDiffusionXLPipeline{variant}", StableDiffusionXLPipeline, parts, {**TEXT, **SIZE, **call})


xl()
xl("-dpm", lambda: DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True))
xl("-euler-ancestral", lambda: EulerAncestralDiscreteScheduler(**BETAS))
xl("-v-prediction", lambda: euler(prediction_type="v_prediction", rescale_betas_zero_snr=True), guidance_rescale=0.7)
xl("-base-of-a-refiner", denoising_end=0.8)
case(
    "StableDiffusionXLPipeline-lcm",
    StableDiffusionXLPipeline,
    lambda: xl_parts(LCMScheduler(**BETAS), xl_unet(time_cond_proj_dim=8)),
    {"prompt": PROMPTS[0], "guidance_scale": 8.0, "output_type": "latent", **SIZE},
    guidance=None,
    batch={"prompt": PROMPTS},
)


def refiner_parts():
    """The refiner has one text encoder, and an aesthetic score in the place of the target's size."""
    parts = xl_parts(denoiser=xl_unet(ids=5, cross_attention_dim=16), requires_aesthetics_score=True)
    return {**parts, "text_encoder": None, "tokenizer": None}


case(
    "StableDiffusionXLImg2ImgPipeline",
    StableDiffusionXLImg2ImgPipeline,
    xl_parts,
    {**TEXT, **PICTURE, "strength": 0.8},
    batch=PICTURES,
)
case(
    "StableDiffusionXLImg2ImgPipeline-refiner",
    StableDiffusionXLImg2ImgPipeline,
    refiner_parts,
    {**TEXT, "image": picture(8, 8, channels=4), "denoising_start": 0.4},
    batch={**BATCH, "image": picture(8, 8, channels=4, count=2)},
)
for name, channels in (("", 9), ("-plain-unet", 4)):
    case(
        f"StableDiffusionXLInpaintPipeline{name}",
        StableDiffusionXLInpaintPipeline,
        lambda channels=channels: xl_parts(denoiser=xl_unet(channels=channels)),
        {**TEXT, **SIZE, **PICTURE, "mask_image": half_mask(), "strength": 0.99},
        batch={**PICTURES, "mask_image": half_mask(count=2)},
    )
case(
    "StableDiffusionXLInstructPix2PixPipeline",
    StableDiffusionXLInstructPix2PixPipeline,
    lambda: xl_parts(denoiser=xl_unet(channels=8)),
    {**TEXT, **SIZE, **PICTURE, "image_guidance_scale": 1.5},
    guidance={"guidance_scale": 1.0, "image_guidance_scale": 1.0},
    batch=PICTURES,
)


class GLMTokenizer(PreTrainedTokenizerFast):
    """Gives positions too, as ChatGLM's own does."""

    def __call__(self, *args, **kwargs):
        made = super().__call__(*args, **kwargs)
        made["position_ids"] = (made["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return made


def glm() -> ChatGLMModel:
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=64,
        hidden_size=16,
        ffn_hidden_size=32,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=32,
        multi_query_attention=True,
        multi_query_group_num=1,
        add_qkv_bias=True,
        original_rope=True,
    )
    model = ChatGLMModel(config, empty_init=False)
    random = torch.Generator().manual_seed(31)
    for weights in model.parameters():  # ChatGLM leaves them uninitialised
        weights.data.normal_(std=0.3, generator=random)
    return model.eval()


def kolors_parts(**more):
    """The text's states are projected to the U-Net's width in the U-Net."""
    words = short_tokenizer()
    denoiser = xl_unet(encoder_hid_dim=16, encoder_hid_dim_type="text_proj", cross_attention_dim=24)
    return {
        "vae": kl_vae(scaling_factor=0.13025),
        "text_encoder": glm(),
        "tokenizer": GLMTokenizer(
            tokenizer_object=words.backend_tokenizer, pad_token="<pad>", eos_token="</s>", padding_side="left"
        ),
        "unet": denoiser,
        "scheduler": euler(beta_end=0.014, num_train_timesteps=1100),
        **more,
    }


KOLORS = {**TEXT, **SIZE, "max_sequence_length": 16}
case("KolorsPipeline", KolorsPipeline, kolors_parts, KOLORS)
case(
    "KolorsImg2ImgPipeline",
    KolorsImg2ImgPipeline,
    kolors_parts,
    {**KOLORS, **PICTURE, "strength": 0.8},
    batch=PICTURES,
)
