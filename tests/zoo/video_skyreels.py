"""SkyReels V2: text and image to video, and diffusion forcing, where every latent frame has its own noise level."""

from __future__ import annotations

import tiny
import torch
from diffusers import (
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
)

from . import image_parts as made
from . import video_parts as parts
from .base import Case

CALL = {**parts.TEXT, **parts.SIZE, "guidance_scale": 6.0, "max_sequence_length": 8}
#: Blocks of two frames start one after the other, each two steps later than the one before.
ASYNCHRONOUS = {"num_frames": 13, "ar_step": 2, "causal_block_size": 2}
#: More frames than one window has: the second goes on from the first one's last.
LONG = {"num_frames": 17, "base_num_frames": 9, "overlap_history": 5, "addnoise_condition": 20}


def model(**config) -> SkyReelsV2Transformer3DModel:
    torch.manual_seed(0)
    sizes = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 64,
        "ffn_dim": 64,
        "num_layers": 4,
        "rope_max_seq_len": 32,
    }
    return made.stirred(SkyReelsV2Transformer3DModel(**{**sizes, **config}))


#: diffusers adds what a model is told of the frame rate to the noise levels of one video only.
ONE = {"batch": None}


def forcing(**config) -> dict:
    """Models of diffusion forcing are told the frame rate."""
    return parts.wan_parts(transformer=model(inject_sample_info=True, **config), scheduler=tiny.unipc(8.0))


def image() -> dict:
    return {"image": made.picture()}


def video() -> dict:
    """The given frames stay as they are; as many as ``num_frames`` are made in all."""
    return {"video": parts.video(5), "num_frames": 13, "base_num_frames": 13, "overlap_history": 5}


def case(name: str, pipeline, components, call, **more) -> None:
    def build():
        return made.quiet(pipeline(**components()))

    Case(name, build=build, call=call, **{"guidance": parts.OFF, "batch": parts.BATCH, **more})


case(
    "SkyReelsV2Pipeline",
    SkyReelsV2Pipeline,
    lambda: parts.wan_parts(transformer=model(), scheduler=tiny.unipc(8.0)),
    lambda: CALL,
)

case(
    "SkyReelsV2ImageToVideoPipeline",
    SkyReelsV2ImageToVideoPipeline,
    lambda: parts.wan_parts(
        transformer=model(in_channels=36, image_dim=16),
        scheduler=tiny.unipc(5.0),
        image_encoder=parts.clip_vision(),
        image_processor=parts.clip_processor(),
    ),
    lambda: {**CALL, **image(), "guidance_scale": 5.0},
)

case(
    "SkyReelsV2DiffusionForcingPipeline",
    SkyReelsV2DiffusionForcingPipeline,
    forcing,
    lambda: CALL,
    **ONE,
)

case(
    "SkyReelsV2DiffusionForcingPipeline-asynchronous",
    SkyReelsV2DiffusionForcingPipeline,
    forcing,
    lambda: {**CALL, **ASYNCHRONOUS},
    **ONE,
)

case(
    "SkyReelsV2DiffusionForcingPipeline-long",
    SkyReelsV2DiffusionForcingPipeline,
    forcing,
    lambda: {**CALL, **LONG},
    **ONE,
)

case(
    "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    forcing,
    lambda: {**CALL, **image(), "guidance_scale": 5.0},
    **ONE,
)

case(
    "SkyReelsV2DiffusionForcingImageToVideoPipeline-asynchronous",
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    forcing,
    lambda: {**CALL, **image(), **ASYNCHRONOUS, "guidance_scale": 5.0},
    **ONE,
)

case(
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    forcing,
    lambda: {**CALL, **video()},
    **ONE,
)

case(
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline-asynchronous",
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    forcing,
    lambda: {**CALL, **video(), "num_frames": 21, "base_num_frames": 21, "ar_step": 2, "causal_block_size": 2},
    **ONE,
)
