"""U-Nets made for videos: Stable Video Diffusion, ModelScope's, I2VGen-XL, and videos with a picture's U-Net."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    TextToVideoZeroPipeline,
    TextToVideoZeroSDXLPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
    VideoToVideoSDPipeline,
)

from .unet_motion import FRAMES, SHOT, frames
from .unet_parts import (
    BATCH,
    SIZE,
    TEXT,
    case,
    clip_processor,
    clip_vision,
    ddim,
    euler,
    loud,
    picture,
    sd_parts,
    stirred,
    xl_parts,
)


def stable_video_parts():
    torch.manual_seed(65)
    denoiser = UNetSpatioTemporalConditionModel(
        in_channels=8,
        block_out_channels=(32, 64),  # its groups are of 32 channels, whatever the width
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12,
        sample_size=8,
    )
    torch.manual_seed(66)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
    )
    scheduler = euler(
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_type="continuous",
    )
    return {
        "vae": vae.eval(),
        "image_encoder": clip_vision(),
        "unet": loud(stirred(denoiser)),
        "scheduler": scheduler,
        "feature_extractor": clip_processor(),
    }


case(
    "StableVideoDiffusionPipeline",
    StableVideoDiffusionPipeline,
    stable_video_parts,
    {**SIZE, "image": picture(), "num_frames": FRAMES, "output_type": "latent"},
    guidance={"max_guidance_scale": 1.0},
    batch={"image": picture(count=2)},
)


def three_d(seed: int = 67, cls=UNet3DConditionModel, heads=None):
    torch.manual_seed(seed)
    made = cls(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        num_attention_heads=heads,
        sample_size=8,
    )
    return loud(stirred(made, seed))


def model_scope_parts():
    made = sd_parts(ddim(), three_d())
    return {name: made[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}


case("TextToVideoSDPipeline", TextToVideoSDPipeline, model_scope_parts, SHOT)
case(
    "VideoToVideoSDPipeline",
    VideoToVideoSDPipeline,
    model_scope_parts,
    {**TEXT, "video": frames(), "strength": 0.8},
    batch=None,
)


def picture_to_video_parts():
    scheduler = ddim(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", rescale_betas_zero_snr=True, steps_offset=1
    )
    return {
        **model_scope_parts(),
        "unet": three_d(68, I2VGenXLUNet, heads=2),
        "scheduler": scheduler,
        "image_encoder": clip_vision(),
        "feature_extractor": clip_processor(),
    }


case(
    "I2VGenXLPipeline",
    I2VGenXLPipeline,
    picture_to_video_parts,
    {**SHOT, "image": picture(), "target_fps": 8, "clip_skip": None},
    batch={**BATCH, "image": picture(count=2)},
)

#: Its two moments of the steps are counted from the end, and must be among the six.
ZERO = {**TEXT, **SIZE, "video_length": 3, "t0": 2, "t1": 4}
case("TextToVideoZeroPipeline", TextToVideoZeroPipeline, lambda: sd_parts(ddim()), ZERO, guidance=None, batch=None)
case(
    "TextToVideoZeroSDXLPipeline",
    TextToVideoZeroSDXLPipeline,
    lambda: xl_parts(ddim()),
    ZERO,
    guidance=None,
    batch=None,
)
