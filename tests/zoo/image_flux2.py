"""FLUX.2 and its small Klein models."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLFlux2,
    Flux2KleinInpaintPipeline,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from . import image_parts as made
from .base import Case

#: Mistral's messages have a list of pieces of text.
PIECES = "{% for message in messages %}{{ message['content'][0]['text'] }} {% endfor %}"
CALL = {
    "prompt": made.PROMPT,
    "height": 32,
    "width": 48,
    "max_sequence_length": 16,
    "text_encoder_out_layers": (1, 2),
    "output_type": "latent",
}


def transformer(*, guided: bool, seed: int = 0) -> Flux2Transformer2DModel:
    """Takes 16 channels, which are 4 packed by 4, and the states of two text layers."""
    torch.manual_seed(seed)
    model = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=3,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guided,
    )
    return made.stirred(model)


def mistral() -> Mistral3ForConditionalGeneration:
    torch.manual_seed(1)
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 12,
        "patch_size": 6,
    }
    text = {"model_type": "mistral", **made.decoder_sizes(16), "sliding_window": None}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=9)
    return Mistral3ForConditionalGeneration(config).eval()


def parts(*, klein: bool = True) -> dict:
    vae = made.kl_vae(4, kind=AutoencoderKLFlux2, use_quant_conv=False, use_post_quant_conv=False)
    return {
        "scheduler": made.flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        "vae": vae,
        "text_encoder": made.qwen3_text(head=True) if klein else mistral(),
        "tokenizer": made.tokenizer(64, made.CHAT if klein else PIECES),
        "transformer": transformer(guided=not klein),
    }


def flux2() -> Flux2Pipeline:
    pipe = made.quiet(Flux2Pipeline(**parts(klein=False)))
    pipe.system_message = "a dog sleeps"  # its own one would be longer than the prompts' longest
    return pipe


Case(
    "Flux2Pipeline",
    build=flux2,
    call=lambda: {**CALL, "guidance_scale": 4.0},
    batch={"prompt": made.TWO},
)
Case(
    "Flux2Pipeline-edit",
    build=flux2,
    call=lambda: {**CALL, "image": [made.picture(64, 64), made.picture(64, 64, 17)], "guidance_scale": 4.0},
    batch={"prompt": made.TWO},
)
Case(
    "Flux2KleinPipeline",
    build=lambda: made.quiet(Flux2KleinPipeline(**parts())),
    call=lambda: {**CALL, "guidance_scale": 4.0},
    guidance={"guidance_scale": 1.0},
    batch={"prompt": made.TWO},
)
Case(
    "Flux2KleinPipeline-edit",
    build=lambda: made.quiet(Flux2KleinPipeline(**parts(), is_distilled=True)),
    call=lambda: {**CALL, "image": made.picture(64, 64)},
    batch={"prompt": made.TWO},
)
Case(
    "Flux2KleinInpaintPipeline",
    build=lambda: made.quiet(Flux2KleinInpaintPipeline(**parts())),
    call=lambda: {
        **CALL,
        "image": made.picture(48, 32),
        "mask_image": made.mask(48, 32),
        "strength": 0.8,
        "guidance_scale": 4.0,
    },
    guidance={"guidance_scale": 1.0},
    batch={"prompt": made.TWO},
)
Case(
    "Flux2KleinKVPipeline",
    build=lambda: made.quiet(Flux2KleinKVPipeline(**parts())),
    call=lambda: {**CALL, "image": made.picture(64, 64)},
    batch={"prompt": made.TWO},
)
