"""Modular video pipelines: HunyuanVideo 1.5, LTX, LTX-2, Helios, Cosmos 3, MiniMax-H3, Wan-Animate 2."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLMiniMaxH3,
    AutoencoderKLMiniMaxH3Audio,
    Cosmos3OmniBlocks,
    Cosmos3OmniModularPipeline,
    HeliosAutoBlocks,
    HeliosModularPipeline,
    HunyuanVideo15AutoBlocks,
    HunyuanVideo15ModularPipeline,
    LTX2AutoBlocks,
    LTX2ModularPipeline,
    LTXAutoBlocks,
    LTXModularPipeline,
    MiniMaxH3Blocks,
    MiniMaxH3ModularPipeline,
    MiniMaxH3Scheduler,
    MiniMaxH3Transformer3DModel,
    WanAnimate2Blocks,
    WanAnimate2ModularPipeline,
    WanAnimate2Transformer3DModel,
)
from diffusers.guiders import LTX2Guidance
from transformers import CLIPVisionConfig, CLIPVisionModel

from . import image_parts as made
from . import modular_parts as modular
from . import video_cosmos, video_hunyuan, video_ltx, video_ltx2, video_more
from . import video_parts as parts
from .video_hunyuan import siglip

CALL = {"prompt": made.PROMPT, "negative_prompt": parts.NEGATIVE, **parts.SIZE, "output_type": "pt"}
#: As many words as are cut off before the prompt.
AFTER_108 = "{% for i in range(108) %}a {% endfor %}{{ messages[-1]['content'] }}"


class Typed(made.Processor):
    """Tells MiniMax's blocks which tokens are pictures."""

    def create_mm_token_type_ids(self, rows: list[list[int]]) -> list[list[int]]:
        return [[int(token == made.SEEN_IDS["image_token_id"]) for token in row] for row in rows]


def hunyuan():
    """Small, for 2000 tokens of text and picture, most of them empty, cannot be left away."""
    transformer = video_hunyuan.newer_model("t2v", layers=3, refiners=1)
    text = {"tokenizer": made.tokenizer(template=AFTER_108)}
    components = {**video_hunyuan.newer("t2v", transformer=transformer, **siglip()), **text}
    return modular.assembled(HunyuanVideo15ModularPipeline, HunyuanVideo15AutoBlocks(), **components)


def ltx(guider=modular.cfg):
    components = video_ltx.components(guider=guider(3.0))
    return modular.assembled(LTXModularPipeline, LTXAutoBlocks(), **components)


def ltx2(**guidance):
    """Two guiders: one for video, one for sound."""
    scales = {"stg_scale": 1.0, "modality_scale": 3.0, "guidance_rescale": 0.7, "spatio_temporal_guidance_blocks": [1]}
    scales.update(guidance)
    guiders = {
        "guider": LTX2Guidance(**{"guidance_scale": 3.0, **scales}),
        "audio_guider": LTX2Guidance(**{"guidance_scale": 5.0, **scales}),
    }
    components = video_ltx2.components(transformer=video_ltx2.newer())
    return modular.assembled(LTX2ModularPipeline, LTX2AutoBlocks(), **components, **guiders)


def minimax():
    """Distilled; video, sound and text are rows of one sequence."""
    torch.manual_seed(0)
    transformer = MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        num_layers=4,
        num_refiner_layers=2,
        ffn_dim=64,
        in_channels=4,
        audio_in_channels=4,
        text_dim=16,
        freq_dim=32,
        time_embed_hidden_dim=32,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    torch.manual_seed(1)
    vae = AutoencoderKLMiniMaxH3(
        latent_channels=4,
        block_out_channels=(8,) * 6,
        layers_per_block=1,
        norm_num_groups=4,
        decoder_num_layers=1,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=16,
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    ).eval()
    torch.manual_seed(2)
    audio_vae = AutoencoderKLMiniMaxH3Audio(
        encoder_dim=4,
        encoder_rates=(2, 2),
        latent_dim=16,
        latent_channels=4,
        num_attention_heads=2,
        decoder_dim=8,
        decoder_rates=(2, 2),
        decoder_kernel_sizes=(4, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3, 5),),
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    return modular.assembled(
        MiniMaxH3ModularPipeline,
        MiniMaxH3Blocks(),
        transformer=made.stirred(transformer),
        vae=vae,
        audio_vae=audio_vae,
        scheduler=MiniMaxH3Scheduler(shift=12.0),
        audio_scheduler=MiniMaxH3Scheduler(shift=3.0),
        text_encoder=made.qwen3vl_text(layers=52),  # the states after 50 layers are read
        tokenizer=made.seeing_tokenizer(),
        processor=Typed(16),
    )


def animate():
    torch.manual_seed(0)
    transformer = WanAnimate2Transformer3DModel(
        text_len=8, dim=32, ffn_dim=64, freq_dim=32, text_dim=32, num_heads=2, num_layers=4
    )
    torch.manual_seed(1)
    sizes = {"hidden_size": 1280, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    seen = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=224, patch_size=32)).eval()
    return modular.assembled(
        WanAnimate2ModularPipeline,
        WanAnimate2Blocks(),
        **parts.wan_parts(
            transformer=made.stirred(transformer),
            image_encoder=seen,
            scheduler=made.flow(5.0),
            guider=modular.cfg(3.0),
        ),
    )


def helios():
    components = parts.wan_parts(transformer=video_more.helios_model(), scheduler=video_more.helios_scheduler())
    return modular.assembled(HeliosModularPipeline, HeliosAutoBlocks(), **components, guider=modular.cfg())


def cosmos():
    components = {key: value for key, value in video_cosmos.omni().items() if key != "enable_safety_checker"}
    pipe = modular.assembled(Cosmos3OmniModularPipeline, Cosmos3OmniBlocks(), **components)
    pipe.update_components(enable_safety_checker=False)
    return pipe


def five_seconds() -> dict:
    """As short as it takes."""
    return {"prompt": made.PROMPT, "height": 32, "width": 32, "num_frames": 124, "output_type": "pt"}


def driven() -> dict:
    """Two segments."""
    return {
        "prompt": made.PROMPT,
        "negative_prompt": parts.NEGATIVE,
        "image": made.picture(),
        "driving_video": parts.video(13),
        "height": 32,
        "width": 32,
        "segment_frame_length": 9,
        "max_sequence_length": 8,
        "output_type": "pt",
    }


# Its VAE decodes one video only.
modular.case("HunyuanVideo15ModularPipeline", hunyuan, lambda: {**CALL, "height": 16, "width": 16}, batch=None)
modular.case("LTXModularPipeline", ltx, lambda: {**CALL, "max_sequence_length": 16})
modular.case("LTX2ModularPipeline", ltx2, lambda: {**CALL, "max_sequence_length": 16}, ["latents", "audio_latents"])
modular.case(
    "HeliosModularPipeline",
    helios,
    lambda: {**CALL, "max_sequence_length": 8, "num_latent_frames_per_chunk": 3, "num_frames": 18},
    "videos",
)
modular.case(
    "Cosmos3OmniModularPipeline",
    cosmos,
    lambda: {**CALL, "guidance_scale": 6.0, "use_system_prompt": False},
    guidance=parts.OFF,
    batch=None,
)
modular.case("MiniMaxH3ModularPipeline", minimax, five_seconds, ["latents", "audio_latents"], batch=None)
modular.case("WanAnimate2ModularPipeline", animate, driven, "videos", batch=None)
