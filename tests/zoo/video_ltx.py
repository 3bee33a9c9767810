"""LTX Video: text and image to video, with pictures at given frames, and long videos window by window."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    LTXConditionPipeline,
    LTXEulerAncestralRFScheduler,
    LTXI2VLongMultiPromptPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from . import image_parts as made
from . import video_parts as parts
from .base import Case

CALL = {**parts.TEXT, **parts.SIZE, "guidance_scale": 3.0, "max_sequence_length": 16}


def model() -> LTXVideoTransformer3DModel:
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=4,
        caption_channels=32,
    )
    return made.stirred(model)


def vae() -> AutoencoderKLLTXVideo:
    """Four times fewer frames, rows and columns."""
    torch.manual_seed(1)
    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
    ).eval()


def shifted():
    """As LTX Video has it: shifted by the number of tokens, and stretched to end at 0.1."""
    return made.flow(1.0, use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1)


def components(**others) -> dict:
    return {
        "transformer": model(),
        "vae": vae(),
        "scheduler": shifted(),
        "text_encoder": made.t5_text(),
        "tokenizer": made.tokenizer(),
        **others,
    }


def conditions() -> dict:
    """A picture at the start, and one that is to come later and only roughly so."""
    first = LTXVideoCondition(image=made.picture(), frame_index=0)
    later = LTXVideoCondition(video=parts.video(9), frame_index=8, strength=0.6)
    return {"conditions": [first, later], "num_frames": 17}


Case(
    "LTXPipeline",
    build=lambda: made.quiet(LTXPipeline(**components())),
    call=lambda: CALL,
    guidance=parts.OFF,
    batch=parts.BATCH,
)
Case(
    "LTXPipeline-rescaled",
    build=lambda: made.quiet(LTXPipeline(**components())),
    call=lambda: {**CALL, "guidance_rescale": 0.7},
    guidance=parts.OFF,
    batch=parts.BATCH,
)
Case(
    "LTXImageToVideoPipeline",
    build=lambda: made.quiet(LTXImageToVideoPipeline(**components())),
    call=lambda: {**CALL, "image": made.picture()},
    guidance=parts.OFF,
    batch={**parts.BATCH, "image": [made.picture(), made.picture(seed=17)]},
)
Case(
    "LTXConditionPipeline",
    build=lambda: made.quiet(LTXConditionPipeline(**components(scheduler=made.flow(1.0)))),
    call=lambda: {**CALL, **conditions()},
    guidance=parts.OFF,
)
Case(
    "LTXConditionPipeline-video_to_video",
    build=lambda: made.quiet(LTXConditionPipeline(**components(scheduler=made.flow(1.0)))),
    call=lambda: {**CALL, "video": parts.video(9), "strength": 1.0, "denoise_strength": 0.7},
    guidance=parts.OFF,
)
Case(
    "LTXI2VLongMultiPromptPipeline",  # two windows, each with its own prompt and its own noise
    build=lambda: made.quiet(LTXI2VLongMultiPromptPipeline(**components(scheduler=LTXEulerAncestralRFScheduler()))),
    call=lambda: {
        **CALL,
        "prompt": "a red cat runs | a blue dog sleeps",
        "num_frames": 33,
        "temporal_tile_size": 24,
        "temporal_overlap": 8,
        "seed": None,  # else it goes before the generator
        "cond_image": made.picture(),
    },
    guidance=parts.OFF,
)
