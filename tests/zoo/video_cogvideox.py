"""CogVideoX: text, image, video and control to video, and ConsisID, which keeps a face."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    ConsisIDTransformer3DModel,
)
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline  # diffusers itself asks for OpenCV first

from . import image_parts as made
from . import video_parts as parts
from .base import Case

CALL = {**parts.TEXT, **parts.SIZE, "guidance_scale": 6.0, "max_sequence_length": 16}
#: The number of frames is that of the video given.
LIKE_ITS_VIDEO = {key: value for key, value in CALL.items() if key != "num_frames"}
#: As the released models have it.
SCHEDULE = {
    "prediction_type": "v_prediction",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 32,
    "num_layers": 4,
    "sample_width": 4,
    "sample_height": 4,
    "sample_frames": 9,
    "max_text_seq_length": 16,
    "use_rotary_positional_embeddings": True,
}
FACE = {
    "is_train_face": True,
    "cross_attn_interval": 2,
    "cross_attn_dim_head": 8,
    "cross_attn_num_heads": 2,
    "LFE_id_dim": 8,
    "LFE_vit_dim": 8,
    "LFE_depth": 2,
    "LFE_dim_head": 8,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 2,
    "LFE_num_querie": 4,
    "LFE_output_dim": 21,  # two thirds of the width
    "LFE_ff_mult": 2,
    "LFE_num_scale": 2,
}


def model(kind=CogVideoXTransformer3DModel, **config):
    torch.manual_seed(0)
    return made.stirred(kind(**{**SIZES, **config}))


def components(scheduler=CogVideoXDPMScheduler, transformer=None) -> dict:
    torch.manual_seed(1)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()
    return {
        "transformer": transformer or model(),
        "vae": vae,
        "scheduler": scheduler(**SCHEDULE),
        "text_encoder": made.t5_text(),
        "tokenizer": made.tokenizer(),
    }


def seeing(**config) -> CogVideoXTransformer3DModel:
    """Takes a picture's latents beside the noise."""
    return model(in_channels=8, **config)


def face() -> dict:
    """What a face's encoders would have made of a picture."""
    random = torch.Generator().manual_seed(63)
    layers = [torch.randn(1, 3, 8, generator=random) for _ in range(2)]
    return {"id_vit_hidden": layers, "id_cond": torch.randn(1, 8, generator=random)}


Case(
    "CogVideoXPipeline",  # the 5B model: positions are rotated, and the scheduler has a memory of one step
    build=lambda: made.quiet(CogVideoXPipeline(**components())),
    call=lambda: {**CALL, "use_dynamic_cfg": True},
    guidance=parts.OFF,
    batch=parts.BATCH,
)
Case(
    "CogVideoXPipeline-ddim",  # the 2B model: positions are added
    build=lambda: made.quiet(
        CogVideoXPipeline(**components(CogVideoXDDIMScheduler, model(use_rotary_positional_embeddings=False)))
    ),
    call=lambda: CALL,
    guidance=parts.OFF,
    batch=parts.BATCH,
)
Case(
    "CogVideoXPipeline-patches_in_time",  # 1.5: two latent frames are one token
    build=lambda: made.quiet(CogVideoXPipeline(**components(transformer=model(patch_size_t=2, patch_bias=False)))),
    call=lambda: {**CALL, "num_frames": 13},
    guidance=parts.OFF,
    batch=parts.BATCH,
)
Case(
    "CogVideoXImageToVideoPipeline",
    build=lambda: made.quiet(
        CogVideoXImageToVideoPipeline(**components(transformer=seeing(use_learned_positional_embeddings=True)))
    ),
    call=lambda: {**CALL, "image": made.picture(), "use_dynamic_cfg": True},
    guidance=parts.OFF,
    batch={**parts.BATCH, "image": [made.picture(), made.picture(seed=17)]},
)
Case(
    "CogVideoXVideoToVideoPipeline",
    build=lambda: made.quiet(CogVideoXVideoToVideoPipeline(**components())),
    call=lambda: {**LIKE_ITS_VIDEO, "video": parts.video(), "strength": 0.7},
    guidance=parts.OFF,
)
Case(
    "CogVideoXFunControlPipeline",
    build=lambda: made.quiet(CogVideoXFunControlPipeline(**components(CogVideoXDDIMScheduler, seeing()))),
    call=lambda: {**LIKE_ITS_VIDEO, "control_video": parts.video()},
    guidance=parts.OFF,
)
Case(
    "ConsisIDPipeline",
    build=lambda: made.quiet(
        ConsisIDPipeline(
            **components(
                transformer=model(
                    ConsisIDTransformer3DModel, in_channels=8, use_learned_positional_embeddings=True, **FACE
                )
            )
        )
    ),
    call=lambda: {**CALL, **face(), "image": made.picture(), "use_dynamic_cfg": True},
    guidance=parts.OFF,
)
