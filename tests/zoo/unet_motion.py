"""AnimateDiff: motion modules put into a picture's U-Net; and PIA, which animates a given picture that way."""

from __future__ import annotations

import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPAGPipeline,
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    LCMScheduler,
    MotionAdapter,
    PIAPipeline,
    SparseControlNetModel,
)

from .unet_control import controlnet
from .unet_parts import BETAS, PROMPTS, SIZE, TEXT, case, ddim, euler, picture, pil, sd_parts, stirred, xl_parts

FRAMES = 4
SHOT = {**TEXT, **SIZE, "num_frames": FRAMES}


def frames(seed: int = 60, count: int = FRAMES) -> list[torch.Tensor]:
    """A video, as a list of pictures."""
    return list(picture(seed=seed, count=count))


def motion(seed: int = 61, **config) -> MotionAdapter:
    """The modules that look along the frames, their outputs no longer zero."""
    torch.manual_seed(seed)
    usual = {
        "block_out_channels": (8, 16),
        "motion_layers_per_block": 1,
        "motion_norm_num_groups": 4,
        "motion_num_attention_heads": 2,
        "motion_max_seq_length": 16,
    }
    return stirred(MotionAdapter(**{**usual, **config}), seed)


def linear(**config):
    return ddim(beta_schedule="linear", steps_offset=0, set_alpha_to_one=True, **config)


def parts(scheduler=None, **more):
    made = sd_parts(scheduler or linear(), **{"motion_adapter": motion(), **more})
    for name in ("safety_checker", "requires_safety_checker"):
        del made[name]
    return made


case("AnimateDiffPipeline", AnimateDiffPipeline, parts, SHOT)
case(
    "AnimateDiffPipeline-lcm",
    AnimateDiffPipeline,
    lambda: parts(LCMScheduler(**{**BETAS, "beta_schedule": "linear"})),
    {**SHOT, "guidance_scale": 2.0},
)


def free_noise(*args, **kwargs):
    """Longer than the motion modules were trained for: their windows overlap."""
    pipe = AnimateDiffPipeline(*args, **kwargs)
    pipe.enable_free_noise(context_length=4, context_stride=2)
    return pipe


def free_init(*args, **kwargs):
    """The whole denoising twice, the second time from the first one's low frequencies."""
    pipe = AnimateDiffPipeline(*args, **kwargs)
    pipe.enable_free_init(num_iters=2)
    return pipe


case("AnimateDiffPipeline-free-noise", free_noise, parts, {**SHOT, "num_frames": 8}, batch=None)
case("AnimateDiffPipeline-free-init", free_init, parts, SHOT)
case(
    "AnimateDiffPAGPipeline",
    AnimateDiffPAGPipeline,
    lambda: parts(pag_applied_layers=["mid"]),
    {**SHOT, "pag_scale": 2.0},
    guidance={"guidance_scale": 1.0, "pag_scale": 0.0},
)
case(
    "AnimateDiffVideoToVideoPipeline",
    AnimateDiffVideoToVideoPipeline,
    parts,
    {**TEXT, **SIZE, "video": frames(), "strength": 0.8},
    batch=None,
)
case(
    "AnimateDiffControlNetPipeline",
    AnimateDiffControlNetPipeline,
    lambda: parts(controlnet=controlnet()),
    {**SHOT, "conditioning_frames": frames(62)},
    batch=None,
)
case(
    "AnimateDiffVideoToVideoControlNetPipeline",
    AnimateDiffVideoToVideoControlNetPipeline,
    lambda: parts(controlnet=controlnet()),
    {**TEXT, **SIZE, "video": frames(), "conditioning_frames": frames(62), "strength": 0.8},
    batch=None,
)


def sparse(seed: int = 63) -> SparseControlNetModel:
    """A ControlNet with motion modules of its own, so that hints for some frames are enough."""
    torch.manual_seed(seed)
    made = SparseControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
        motion_num_attention_heads=2,
        motion_max_seq_length=16,
    )
    return stirred(made, seed)


case(
    "AnimateDiffSparseControlNetPipeline",
    AnimateDiffSparseControlNetPipeline,
    lambda: parts(controlnet=sparse()),
    {**SHOT, "conditioning_frames": pil(picture(seed=62, count=2)), "controlnet_frame_indices": [0, 3]},
)


def xl_motion_parts():
    scheduler = euler(beta_schedule="linear", steps_offset=0, timestep_spacing="linspace")
    return xl_parts(scheduler, motion_adapter=motion(use_motion_mid_block=False))


case("AnimateDiffSDXLPipeline", AnimateDiffSDXLPipeline, xl_motion_parts, SHOT)


def pia_parts():
    """Beside the noisy latents the first picture's, and how much each frame may differ from it."""
    return parts(euler(beta_schedule="linear"), motion_adapter=motion(conv_in_channels=9))


case(
    "PIAPipeline",
    PIAPipeline,
    pia_parts,
    {**SHOT, "image": picture(), "motion_scale": 1},
    batch={"prompt": PROMPTS, "negative_prompt": ["red", "blue"], "image": picture(count=2)},
)
