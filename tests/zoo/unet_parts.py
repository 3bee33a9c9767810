"""U-Nets and schedulers of the pipelines around Stable Diffusion; it registers no case itself."""

from __future__ import annotations

import tiny
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from .base import Case

PROMPTS = ["a red cat runs", "a blue dog sleeps"]
#: What every text-to-picture call has; ``BATCH`` and ``NO_GUIDANCE`` are changes of it.
TEXT = {"prompt": PROMPTS[0], "negative_prompt": "red", "guidance_scale": 5.0, "output_type": "latent"}
SIZE = {"height": 16, "width": 16}
BATCH = {"prompt": PROMPTS, "negative_prompt": ["red", "blue"]}
NO_GUIDANCE = {"guidance_scale": 1.0}

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def short_tokenizer(length: int = 16) -> PreTrainedTokenizerFast:
    """tests/tiny.py's tokenizer with a longest prompt, to which pipelines with CLIP pad every prompt."""
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = length
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # CLIP knows no third
    return tokenizer


def clip_text(seed: int = 20, *, width: int = 16, projected: bool = False, layers: int = 2, **config):
    """A CLIP text encoder; ``projected`` for one with the projection of its pooled state."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "vocab_size": 64}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    made = CLIPTextConfig(**sizes, **tokens, num_hidden_layers=layers, **{"projection_dim": width, **config})
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(made).eval()


def t5(seed: int = 25, width: int = 16) -> T5EncoderModel:
    torch.manual_seed(seed)
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 2 * width, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()


def clip_vision(seed: int = 21, *, width: int = 16, size: int = 16, **config) -> CLIPVisionModelWithProjection:
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_hidden_layers": 2}
    patches = {"image_size": size, "patch_size": size // 2, "projection_dim": width}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**{**sizes, **patches, **config})).eval()


def clip_processor(size: int = 16) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def kl_vae(seed: int = 22, *, widths: tuple[int, ...] = (8, 8), latent_channels: int = 4, **config) -> AutoencoderKL:
    """A picture's autoencoder; its latents are smaller by 2 for every width after the first."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=latent_channels,
        norm_num_groups=4,
        **config,
    ).eval()


def picture(height: int = 16, width: int = 16, *, seed: int = 23, count: int = 1, channels: int = 3) -> torch.Tensor:
    """Random colours between 0 and 1."""
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def pil(tensor: torch.Tensor) -> list[Image.Image]:
    """The same pictures for pipelines that take no tensors."""
    return [Image.fromarray((255 * p.permute(1, 2, 0)).to(torch.uint8).numpy()) for p in tensor]


def stirred(model: torch.nn.Module, seed: int = 24, scale: float = 0.1):
    """Small random numbers where training starts at zero, so that every layer has its part in the output."""
    random = torch.Generator().manual_seed(seed)
    for name, weights in model.named_parameters():
        if not name.endswith("bias") and not weights.any():
            weights.data.normal_(std=scale, generator=random)
    return model.eval()


def loud(denoiser: torch.nn.Module):
    """A U-Net that predicts about as much as it is given, and something else at other times."""
    with torch.no_grad():
        denoiser.conv_out.weight.mul_(4.0)
        denoiser.time_embedding.linear_2.weight.mul_(4.0)
    return denoiser.eval()


def half_mask(height: int = 16, width: int = 16, *, count: int = 1) -> torch.Tensor:
    """The right half is to be painted."""
    mask = torch.zeros(count, 1, height, width)
    mask[..., width // 2 :] = 1
    return mask


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def case(name, pipeline, parts, call, *, batch=BATCH, guidance=NO_GUIDANCE, denoisers=("unet",), **more):
    """A case of a pipeline with a U-Net; ``parts`` makes the parts, ``call`` has the arguments."""

    def build():
        pipe = quiet(pipeline(**parts()))
        for name in denoisers:  # some pipelines wrap what they are given in a new module
            getattr(pipe, name).eval()
        return pipe

    return Case(name, build, lambda: dict(call), batch=batch, guidance=guidance, denoisers=denoisers, **more)


def unet(seed: int = 0, *, channels: int = 4, cls=UNet2DConditionModel, **config):
    """Two levels, text at both of them, as Stable Diffusion's has at all but its lowest."""
    torch.manual_seed(seed)
    usual = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "sample_size": 8,
        "out_channels": 4,
        "cross_attention_dim": 16,
    }
    return loud(cls(in_channels=channels, **{**usual, **config}))


def xl_unet(seed: int = 0, *, channels: int = 4, ids: int = 6, **config):
    """Text at the lower level only, two blocks of it, and the sizes and the pooled text beside the time."""
    usual = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 4 * ids + 16,
        "attention_head_dim": (1, 2),
        "cross_attention_dim": 32,
    }
    return unet(seed, channels=channels, **{**usual, **config})


def pndm() -> PNDMScheduler:
    return PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)


def ddim(**config) -> DDIMScheduler:
    return DDIMScheduler(**{**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **config})


def euler(**config) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**{**BETAS, "timestep_spacing": "leading", "steps_offset": 1, **config})


def sd_parts(scheduler=None, denoiser=None, **more) -> dict:
    """The parts of Stable Diffusion 1; ``more`` are added to them or replace them."""
    return {
        "vae": kl_vae(),
        "text_encoder": clip_text(),
        "tokenizer": short_tokenizer(),
        "unet": denoiser or unet(),
        "scheduler": scheduler or pndm(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        **more,
    }


def xl_parts(scheduler=None, denoiser=None, **more) -> dict:
    """The parts of Stable Diffusion XL."""
    return {
        "vae": kl_vae(scaling_factor=0.13025),
        "text_encoder": clip_text(hidden_act="quick_gelu"),
        "text_encoder_2": clip_text(30, projected=True, hidden_act="gelu"),
        "tokenizer": short_tokenizer(),
        "tokenizer_2": short_tokenizer(),
        "unet": denoiser or xl_unet(),
        "scheduler": scheduler or euler(),
        **more,
    }
