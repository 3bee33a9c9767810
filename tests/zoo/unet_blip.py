"""BLIP-Diffusion: a subject's picture becomes a few vectors among the prompt's words; with and without a ControlNet."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import BlipDiffusionControlNetPipeline, BlipDiffusionPipeline
from diffusers.pipelines.deprecated.blip_diffusion.blip_image_processing import BlipImageProcessor
from diffusers.pipelines.deprecated.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
from transformers import CLIPTextConfig

from .unet_control import controlnet
from .unet_parts import SIZE, case, kl_vae, picture, pil, pndm, short_tokenizer, unet


class Queries(torch.nn.Module):
    """In the place of diffusers' own Q-Former, which needs methods that transformers' models no longer have."""

    device, dtype = torch.device("cpu"), torch.float32  # the pipeline asks its parts

    def __init__(self, count: int = 4, width: int = 16):
        super().__init__()
        torch.manual_seed(160)
        self.config = SimpleNamespace(num_query_tokens=count)
        self.layer = torch.nn.Linear(3, count * width)

    def forward(self, image_input, text_input, return_dict=False):
        return self.layer(image_input.mean(dim=(2, 3))).unflatten(1, (self.config.num_query_tokens, -1))


def parts(**more):
    torch.manual_seed(161)
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return {
        "tokenizer": short_tokenizer(32),
        "text_encoder": ContextCLIPTextModel(config).eval(),
        "vae": kl_vae(),
        "unet": unet(),
        "scheduler": pndm(),
        "qformer": Queries().eval(),
        "image_processor": BlipImageProcessor(size={"height": 16, "width": 16}),
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        **more,
    }


CALL = {
    **SIZE,
    "prompt": ["red"],
    "reference_image": pil(picture())[0],
    "source_subject_category": ["dog"],
    "target_subject_category": ["cat"],
    "guidance_scale": 5.0,
    "neg_prompt": "blue",
    "prompt_reps": 2,
    "output_type": "pt",
}
BOTH = {
    "prompt": ["red", "blue"],
    "reference_image": pil(picture(count=2)),
    "source_subject_category": ["dog", "cat"],
    "target_subject_category": ["cat", "dog"],
}
case("BlipDiffusionPipeline", BlipDiffusionPipeline, parts, CALL, batch=BOTH)
case(
    "BlipDiffusionControlNetPipeline",
    BlipDiffusionControlNetPipeline,
    lambda: parts(controlnet=controlnet()),
    {**CALL, "condtioning_image": pil(picture(seed=162))[0]},
    batch=BOTH,
)
