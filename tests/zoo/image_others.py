"""Kandinsky 5, GLM-Image, VisualCloze, OmniGen, Cosmos 2, HunyuanImage's refiner."""

from __future__ import annotations

import types

import tiny
import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKLHunyuanImageRefiner,
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    HunyuanImageRefinerPipeline,
    HunyuanImageTransformer2DModel,
    Kandinsky5I2IPipeline,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    VisualClozeGenerationPipeline,
    VisualClozePipeline,
)
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

from . import image_parts as made
from .base import Case
from .image_flux import transformer as flux_transformer
from .image_qwen import seeing_text

SIZED = {"prompt": made.PROMPT, "negative_prompt": "a blue dog", "height": 64, "width": 96, "output_type": "latent"}
CALL = {**SIZED, "guidance_scale": 4.0}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}
OFF = {"guidance_scale": 1.0}


def kandinsky(kind, *, edits: bool = False):
    """Takes it that a picture is 8 times as large as its latents, and only a few sizes."""
    torch.manual_seed(0)
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=16,
        out_visual_dim=16,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=32,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=2,
        num_visual_blocks=4,
        axes_dims=(4, 4, 8),
        visual_cond=edits,
    )
    pipe = kind(
        transformer=made.stirred(transformer),
        vae=made.kl_vae(16, levels=4, scaling_factor=0.4, shift_factor=0.1),
        text_encoder=seeing_text(),
        tokenizer=made.Processor(),
        text_encoder_2=made.clip_text(width=16),
        tokenizer_2=made.tokenizer(77),
        scheduler=made.flow(3.0),
    )
    pipe.resolutions = [(96, 64)]
    pipe.prompt_template, pipe.prompt_template_encode_start_idx = (made.SEEN if edits else "") + "{}", 0
    return made.quiet(pipe)


def glm() -> GlmImagePipeline:
    """Without the language model: the call has the tokens that it would have written."""
    torch.manual_seed(0)
    transformer = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=64,
    )
    pipe = GlmImagePipeline(
        tokenizer=made.tokenizer(16),
        processor=None,
        text_encoder=made.t5_text(),
        vision_language_encoder=None,
        vae=made.kl_vae(4, levels=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        transformer=made.stirred(transformer),
        scheduler=made.flow(1.0, use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
    )
    return made.quiet(pipe)


def prior_tokens(count: int = 1) -> torch.Tensor:
    """One for every patch of a picture of 64 by 96."""
    return torch.randint(0, 64, (1, 4 * 6), generator=torch.Generator().manual_seed(4)).repeat(count, 1)


def cloze(kind):
    """FLUX.1 Fill, on a grid of pictures of which the last one is missing."""
    pipe = kind(
        scheduler=made.flow(3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=made.kl_vae(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=made.clip_text(),
        tokenizer=made.tokenizer(77),
        text_encoder_2=made.t5_text(),
        tokenizer_2=made.tokenizer(64),
        transformer=flux_transformer(16 + 16 + 4 * 2 * 2),
        resolution=32,
    )
    for loop in (getattr(pipe, "generation_pipe", pipe), getattr(pipe, "upsampling_pipe", pipe)):
        made.quiet(loop)
    return pipe


CLOZE = {
    "task_prompt": "a dog, a red dog",
    "content_prompt": "a red cat",
    "guidance_scale": 30.0,
    "max_sequence_length": 16,
    "output_type": "latent",
}


def pictures() -> dict:
    return {"image": [[made.picture(), made.picture(seed=18)], [made.picture(seed=19), None]]}


def without_torchvision() -> None:
    """Lets OmniGen have its processor: only pictures in the prompt need torchvision."""
    if hasattr(processor_omnigen, "transforms"):
        return

    def nothing(*arguments, **options):
        return None

    names = ("Compose", "Lambda", "ToTensor", "Normalize")
    processor_omnigen.transforms = types.SimpleNamespace(**dict.fromkeys(names, nothing))
    pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor


def omnigen() -> OmniGenPipeline:
    """A language model that reads words, pictures and the latents alike."""
    without_torchvision()
    torch.manual_seed(0)
    transformer = OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        num_layers=4,
        pad_token_id=0,
        vocab_size=64,
        time_step_dim=16,
        rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
    )
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1)
    pipe = OmniGenPipeline(made.stirred(transformer), scheduler, made.kl_vae(4, levels=4), made.tokenizer(64))
    return made.quiet(pipe)


class Harmless:
    """In the place of a guardrail of many gigabytes: it lets everything pass."""

    def to(self, device):
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video):
        return video


def cosmos() -> Cosmos2TextToImagePipeline:
    torch.manual_seed(0)
    transformer = CosmosTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,  # which would need torchvision
    )
    pipe = Cosmos2TextToImagePipeline(
        text_encoder=made.t5_text(),
        tokenizer=made.tokenizer(16),
        transformer=made.stirred(transformer),
        vae=tiny.wan_vae(),
        scheduler=made.flow(1.0, use_karras_sigmas=True),
        safety_checker=Harmless(),
    )
    return made.quiet(pipe)


def refiner() -> HunyuanImageRefinerPipeline:
    """Takes the picture's latents beside the noise; the channels of two frames make one."""
    torch.manual_seed(0)
    transformer = HunyuanImageTransformer2DModel(
        in_channels=16,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_single_layers=3,
        num_refiner_layers=1,
        patch_size=(1, 1, 1),
        guidance_embeds=True,
        text_embed_dim=16,
        rope_axes_dim=(4, 4, 8),
    )
    torch.manual_seed(1)
    vae = AutoencoderKLHunyuanImageRefiner(
        latent_channels=4,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    ).eval()
    pipe = HunyuanImageRefinerPipeline(
        scheduler=made.flow(4.0),
        vae=vae,
        text_encoder=tiny.qwen_text_encoder(),
        tokenizer=made.tokenizer(16),
        transformer=made.stirred(transformer),
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
    )
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length = "{}", 0, 16
    return made.quiet(pipe)


Case(
    "Kandinsky5T2IPipeline",
    build=lambda: kandinsky(Kandinsky5T2IPipeline),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "Kandinsky5I2IPipeline",
    build=lambda: kandinsky(Kandinsky5I2IPipeline, edits=True),
    call=lambda: {**CALL, "image": made.picture(96, 64)},
    guidance=OFF,
)
Case(
    "GlmImagePipeline",
    build=glm,
    call=lambda: {
        "prompt": 'a "red cat" runs',
        "prior_token_ids": prior_tokens(),
        "height": 64,
        "width": 96,
        "guidance_scale": 3.0,
        "max_sequence_length": 16,
        "output_type": "latent",
    },
    guidance=OFF,
    batch={"prompt": made.TWO, "prior_token_ids": prior_tokens(2)},
)
Case(
    "VisualClozeGenerationPipeline",
    build=lambda: cloze(VisualClozeGenerationPipeline),
    call=lambda: {**CLOZE, **pictures()},
)
Case(
    "VisualClozePipeline",  # generates on the grid, then enlarges: two loops one after the other
    build=lambda: cloze(VisualClozePipeline),
    call=lambda: {**CLOZE, **pictures(), "upsampling_height": 64, "upsampling_width": 64, "upsampling_strength": 0.6},
)
Case(
    "OmniGenPipeline",
    build=omnigen,
    call=lambda: {
        "prompt": made.PROMPT,
        "height": 64,
        "width": 96,
        "guidance_scale": 2.5,
        "output_type": "latent",
    },
    batch={"prompt": made.TWO},
)
Case(
    "Cosmos2TextToImagePipeline",
    build=cosmos,
    call=lambda: {**CALL, "max_sequence_length": 16},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "HunyuanImageRefinerPipeline",
    build=refiner,
    call=lambda: {**SIZED, "height": 32, "width": 48, "image": made.picture(48, 32)},
)
