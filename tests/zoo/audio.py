"""Pipelines of sound: Stable Audio, ACE-Step, LongCat's."""

from __future__ import annotations

import tiny
import torch
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    AutoencoderSAME,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
    StableAudio3AudioToAudioPipeline,
    StableAudio3DiTModel,
    StableAudio3InpaintPipeline,
    StableAudio3Pipeline,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder

from . import image_parts as made
from .base import Case

BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}
OFF = {"guidance_scale": 1.0}


def oobleck(channels: int) -> AutoencoderOobleck:
    torch.manual_seed(1)
    return AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[1, 2],
        decoder_channels=4,
        decoder_input_channels=channels,
        channel_multiples=[2, 4],
        sampling_rate=16,
    ).eval()


def stable() -> StableAudioPipeline:
    torch.manual_seed(0)
    transformer = StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=16,
        cross_attention_input_dim=16,
        time_proj_dim=16,
        global_states_input_dim=32,
    )
    torch.manual_seed(2)
    projection = StableAudioProjectionModel(text_encoder_dim=32, conditioning_dim=16, min_value=0, max_value=32)
    scheduler = EDMDPMSolverMultistepScheduler(  # the released model's own needs torchsde
        sigma_min=0.3, sigma_max=500, sigma_data=1.0, prediction_type="v_prediction", sigma_schedule="exponential"
    )
    pipe = StableAudioPipeline(
        vae=oobleck(4),
        text_encoder=made.t5_text(),
        projection_model=projection.eval(),
        tokenizer=made.tokenizer(16),
        transformer=made.stirred(transformer),
        scheduler=scheduler,
    )
    return made.quiet(pipe)


def stable3(kind, *, stochastic: bool = False):
    """The released distilled models make new noise at every step, which ``stochastic`` asks for."""
    torch.manual_seed(0)
    transformer = StableAudio3DiTModel(
        io_channels=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
        cond_token_dim=16,
        global_cond_dim=16,
        local_add_cond_dim=9,
        timestep_features_dim=16,
        ff_mult=2,
        num_memory_tokens=4,
    )
    torch.manual_seed(1)
    vae = AutoencoderSAME(
        patch_size=2,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=8,
        use_differential_attention=False,
        dim_heads=4,
        ff_mult=2,
        sampling_rate=16,
    ).eval()
    torch.manual_seed(2)
    embedder = StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0, stochastic_sampling=stochastic)
    pipe = kind(
        vae=vae,
        text_encoder=made.gemma2_text(),
        tokenizer=made.tokenizer(16),
        duration_embedder=embedder,
        transformer=made.stirred(transformer),
        scheduler=scheduler,
    )
    return made.quiet(pipe)


def ace(*, turbo: bool = False) -> AceStepPipeline:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {**sizes, "head_dim": 8, "rope_theta": 10000.0, "sliding_window": 16}
    torch.manual_seed(0)
    transformer = AceStepTransformer1DModel(
        num_hidden_layers=4,
        in_channels=24,
        audio_acoustic_hidden_dim=8,
        is_turbo=turbo,
        model_version="turbo" if turbo else "base",
        **sizes,
    )
    torch.manual_seed(2)
    conditions = AceStepConditionEncoder(
        text_hidden_dim=16,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=2,
        num_timbre_encoder_hidden_layers=2,
        **sizes,
    )
    pipe = AceStepPipeline(
        vae=oobleck(8),
        text_encoder=made.qwen3_text(),
        tokenizer=made.tokenizer(64),
        transformer=made.stirred(transformer),
        condition_encoder=made.stirred(conditions, 101),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
    return made.quiet(pipe)


def longcat() -> LongCatAudioDiTPipeline:
    torch.manual_seed(0)
    transformer = LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=4, dit_heads=2, dit_text_dim=32, latent_dim=8, text_conv=False
    )
    torch.manual_seed(1)
    vae = LongCatAudioDiTVae(
        channels=16,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=8,
        encoder_latent_dim=16,
        downsampling_ratio=2,
        sample_rate=240,
    ).eval()
    pipe = LongCatAudioDiTPipeline(
        vae=vae,
        text_encoder=tiny.wan_text_encoder(),
        tokenizer=made.tokenizer(16),
        transformer=made.stirred(transformer),
    )
    return made.quiet(pipe)


def waves(seconds: int = 4, rate: int = 16) -> torch.Tensor:
    """Two channels of noise."""
    return torch.rand(1, 2, seconds * rate, generator=torch.Generator().manual_seed(3)) * 2 - 1


STABLE3 = {"prompt": made.PROMPT, "duration": 4.0, "output_type": "latent"}
ACE = {"prompt": made.PROMPT, "lyrics": "a dog sleeps", "audio_duration": 1.0, "output_type": "latent"}

Case(
    "StableAudioPipeline",
    build=stable,
    call=lambda: {
        "prompt": made.PROMPT,
        "negative_prompt": "a blue dog",
        "audio_end_in_s": 1.5,
        "guidance_scale": 7.0,
        "output_type": "latent",
    },
    guidance=OFF,
    batch=BATCH,
)
Case(
    "StableAudio3Pipeline",
    build=lambda: stable3(StableAudio3Pipeline),
    call=lambda: {**STABLE3, "negative_prompt": "a blue dog", "guidance_scale": 4.0},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "StableAudio3Pipeline-stochastic",
    build=lambda: stable3(StableAudio3Pipeline, stochastic=True),
    call=lambda: STABLE3,
    batch={"prompt": made.TWO},
)
Case(
    "StableAudio3AudioToAudioPipeline",
    build=lambda: stable3(StableAudio3AudioToAudioPipeline),
    call=lambda: {**STABLE3, "audio": waves(), "init_noise_level": 0.8},
    batch={"prompt": made.TWO},
)
Case(
    "StableAudio3InpaintPipeline",
    build=lambda: stable3(StableAudio3InpaintPipeline),
    call=lambda: {**STABLE3, "audio": waves(), "mask_start_seconds": 1.0, "mask_end_seconds": 3.0},
    batch={"prompt": made.TWO},
)
Case(
    "AceStepPipeline",
    build=ace,
    call=lambda: {**ACE, "guidance_scale": 7.0},
    guidance=OFF,
    batch={"prompt": made.TWO, "lyrics": ["a dog sleeps", "a cat"]},
)
Case(
    "AceStepPipeline-turbo",
    build=lambda: ace(turbo=True),
    call=lambda: {**ACE, "guidance_scale": 1.0},
    batch={"prompt": made.TWO, "lyrics": ["a dog sleeps", "a cat"]},
)
Case(
    "LongCatAudioDiTPipeline",
    build=longcat,
    call=lambda: {
        "prompt": made.PROMPT,
        "negative_prompt": "a blue dog",
        "audio_duration_s": 0.5,
        "guidance_scale": 4.0,
        "output_type": "latent",
    },
    guidance=OFF,
    batch=BATCH,
)
