"""Wan 2.1 and 2.2 and what is built like them: ChronoEdit, Lucy-Edit."""

from __future__ import annotations

import torch
from diffusers import (
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    LucyEditPipeline,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)

from . import image_parts as made
from . import video_parts as parts
from .base import Case

SIZES = {
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
CALL = {**parts.TEXT, **parts.SIZE, "guidance_scale": 5.0, "max_sequence_length": 8}
#: Wan 2.2's 5B model: 16 pixels and a patch of 2 make one token.
TI2V_CALL = {**CALL, "height": 64, "width": 64}
#: The steps with the noisy expert are as many as the others at 6 steps.
STAGES = {"boundary_ratio": 0.8}
BOTH = ("transformer", "transformer_2")


def model(kind=WanTransformer3DModel, seed: int = 0, **config):
    torch.manual_seed(seed)
    return made.stirred(kind(**{**SIZES, **config}))


def experts(**config) -> dict:
    return {"transformer": model(**config), "transformer_2": model(seed=1, **config), **STAGES}


def seeing() -> dict:
    return {"image_encoder": parts.clip_vision(), "image_processor": parts.clip_processor()}


def animate() -> WanAnimateTransformer3DModel:
    """Adapters to the face come after every second block."""
    motion = {"motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_encoder_size": 16}
    face = {"face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 2}
    return model(
        WanAnimateTransformer3DModel,
        in_channels=36,
        image_dim=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        **motion,
        **face,
    )


def case(name: str, pipeline, components, call, **more) -> None:
    """A case with guidance and lists of prompts, which the others may change."""

    def build():
        return made.quiet(pipeline(**components()))

    Case(name, build=build, call=call, **{"guidance": parts.OFF, "batch": parts.BATCH, **more})


case(
    "WanPipeline",
    WanPipeline,
    lambda: parts.wan_parts(transformer=model()),
    lambda: CALL,
)
case(
    "WanPipeline-flow_euler",
    WanPipeline,
    lambda: parts.wan_parts(transformer=model(), scheduler=made.flow(5.0)),
    lambda: CALL,
)
case(
    "WanPipeline-two-stages",
    WanPipeline,
    lambda: parts.wan_parts(**experts()),
    lambda: {**CALL, "guidance_scale": 4.0, "guidance_scale_2": 3.0},
    guidance={"guidance_scale": 1.0, "guidance_scale_2": 1.0},
    denoisers=BOTH,
)
case(
    "WanPipeline-ti2v",
    WanPipeline,
    lambda: parts.wan_parts(transformer=model(), vae=parts.wan22_vae(), expand_timesteps=True),
    lambda: TI2V_CALL,
)
case(
    "WanImageToVideoPipeline",
    WanImageToVideoPipeline,
    lambda: parts.wan_parts(transformer=model(in_channels=36, image_dim=16), **seeing()),
    lambda: {**CALL, "image": made.picture()},
)
case(
    "WanImageToVideoPipeline-first_and_last",
    WanImageToVideoPipeline,
    lambda: parts.wan_parts(transformer=model(in_channels=36, image_dim=16, pos_embed_seq_len=10), **seeing()),
    lambda: {**CALL, "image": made.picture(), "last_image": made.picture(seed=17)},
    batch=None,  # both pictures' tokens would be joined to one row and then repeated: too few rows
)
case(
    "WanImageToVideoPipeline-two-stages",
    WanImageToVideoPipeline,
    lambda: parts.wan_parts(**experts(in_channels=36)),
    lambda: {**CALL, "image": made.picture(), "guidance_scale": 3.5},
    denoisers=BOTH,
)
case(
    "WanImageToVideoPipeline-ti2v",
    WanImageToVideoPipeline,
    lambda: parts.wan_parts(transformer=model(), vae=parts.wan22_vae(), expand_timesteps=True),
    lambda: {**TI2V_CALL, "image": made.picture(64, 64)},
)
case(
    "WanVideoToVideoPipeline",
    WanVideoToVideoPipeline,
    lambda: parts.wan_parts(transformer=model()),
    lambda: {**{k: v for k, v in CALL.items() if k != "num_frames"}, "video": parts.video(), "strength": 0.7},
)
case(
    "WanVACEPipeline",
    WanVACEPipeline,
    lambda: parts.wan_parts(
        transformer=model(WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=96), boundary_ratio=None
    ),
    lambda: {**CALL, "video": parts.video(), "mask": [made.mask() for _ in range(9)]},
    batch=None,  # it refuses two prompts
)
case(
    "WanVACEPipeline-reference",
    WanVACEPipeline,
    lambda: parts.wan_parts(transformer=model(WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=96)),
    lambda: {**CALL, "reference_images": made.picture(), "conditioning_scale": 0.8},
    batch=None,
)
case(
    "WanAnimatePipeline",
    WanAnimatePipeline,
    lambda: parts.wan_parts(transformer=animate(), **seeing()),
    lambda: {
        **{k: v for k, v in CALL.items() if k != "num_frames"},
        "image": made.picture(),
        "pose_video": parts.video(9),
        "face_video": parts.video(9, 16, 16, seed=80),
        "segment_frame_length": 9,
        "guidance_scale": 3.0,
    },
)
case(
    "WanAnimatePipeline-segments",  # two segments, denoised one after the other
    WanAnimatePipeline,
    lambda: parts.wan_parts(transformer=animate(), **seeing()),
    lambda: {
        **{k: v for k, v in CALL.items() if k != "num_frames"},
        "image": made.picture(),
        "pose_video": parts.video(13),
        "face_video": parts.video(13, 16, 16, seed=80),
        "background_video": parts.video(13, seed=100),
        "mask_video": [made.mask() for _ in range(13)],
        "mode": "replace",
        "segment_frame_length": 9,
        "guidance_scale": 1.0,
        "output_type": "pt",
    },
    guidance=None,
)
case(
    "ChronoEditPipeline",
    ChronoEditPipeline,
    lambda: parts.wan_parts(transformer=model(ChronoEditTransformer3DModel, in_channels=36, image_dim=16), **seeing()),
    lambda: {**CALL, "image": made.picture()},
)
case(
    "ChronoEditPipeline-reasoning",  # the frames between the first and the last leave after two steps
    ChronoEditPipeline,
    lambda: parts.wan_parts(transformer=model(ChronoEditTransformer3DModel, in_channels=36, image_dim=16), **seeing()),
    lambda: {
        **CALL,
        "image": made.picture(),
        "enable_temporal_reasoning": True,
        "num_temporal_reasoning_steps": 2,
    },
)
case(
    "LucyEditPipeline",
    LucyEditPipeline,
    lambda: parts.wan_parts(transformer=model(in_channels=32), vae=parts.wan22_vae(), expand_timesteps=True),
    lambda: {**TI2V_CALL, "video": parts.video(9, 64, 64)},
    batch=None,  # one video for two prompts is refused
)
