"""Cosmos 1, Predict 2 and 2.5, Cosmos 3.

Cosmos2_5_TransferPipeline is not here: its ControlNet asks for torchvision, which the tests do without.
"""

from __future__ import annotations

import tiny
import torch
from diffusers import (
    AutoencoderKLCosmos,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2VideoToWorldPipeline,
    Cosmos3OmniPipeline,
    Cosmos3OmniTransformer,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    CosmosVideoToWorldPipeline,
    EDMEulerScheduler,
    UniPCMultistepScheduler,
)

from . import image_parts as made
from . import video_parts as parts
from .base import Case

CALL = {**parts.TEXT, **parts.SIZE, "guidance_scale": 7.0, "max_sequence_length": 16}
SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "mlp_ratio": 2,
    "text_embed_dim": 32,
    "adaln_lora_dim": 4,
    "max_size": (8, 32, 32),
    "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0),
    "extra_pos_embed_type": "learnable",
}


class NoChecker:
    """What a pipeline without the guardrail's package wants to have; it finds nothing."""

    def to(self, *args, **kwargs):
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames):
        return frames


def model(channels: int, out: int, **config) -> CosmosTransformer3DModel:
    torch.manual_seed(0)
    model = CosmosTransformer3DModel(
        in_channels=channels,
        out_channels=out,
        num_layers=4,
        concat_padding_mask=False,  # torchvision would be asked to resize it
        **{**SIZES, **config},
    )
    return made.stirred(model)


def text() -> dict:
    return {"text_encoder": made.t5_text(), "tokenizer": made.tokenizer(), "safety_checker": NoChecker()}


def first(channels: int) -> dict:
    """Cosmos 1: an own VAE, and EDM's noise levels."""
    torch.manual_seed(1)
    vae = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8,) * 4,
        decode_block_out_channels=(8,) * 4,
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        scaling_factor=1.0,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )
    scheduler = EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80,
        sigma_data=0.5,
        sigma_schedule="karras",
        prediction_type="epsilon",
        final_sigmas_type="sigma_min",
    )
    return {"transformer": model(channels, 4), "vae": vae.eval(), "scheduler": scheduler, **text()}


def second(channels: int) -> dict:
    """Predict 2: Wan's VAE, and rectified flow over the same noise levels."""
    scheduler = made.flow(1.0, use_karras_sigmas=True)
    return {"transformer": model(channels, 16), "vae": tiny.wan_vae(), "scheduler": scheduler, **text()}


def newer() -> dict:
    """2.5: told by Qwen's states of all layers, which are projected first."""
    projected = {"use_crossattn_projection": True, "crossattn_proj_in_channels": 32}
    scheduler = UniPCMultistepScheduler(
        use_karras_sigmas=True,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        sigma_max=200.0,
        sigma_min=0.01,
    )
    return {
        "transformer": model(17, 16, **projected, encoder_hidden_states_channels=32),
        "vae": tiny.wan_vae(),
        "scheduler": scheduler,
        "text_encoder": tiny.qwen_text_encoder(),
        "tokenizer": made.tokenizer(template=made.LAST),
        "safety_checker": NoChecker(),
    }


def omni() -> dict:
    """Cosmos 3: one transformer reads the prompt's tokens itself; experts of its own denoise."""
    torch.manual_seed(0)
    transformer = Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=32,
        intermediate_size=64,
        latent_channel=16,
        latent_patch_size=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=4,
        patch_latent_dim=64,
        rope_axes_dim=[4, 2, 2],
        vocab_size=64,
        unified_3d_mrope_temporal_modality_margin=100,
    )
    return {
        "transformer": made.stirred(transformer),
        "text_tokenizer": made.seeing_tokenizer(),
        "vae": tiny.wan_vae(),
        "scheduler": tiny.unipc(5.0),
        "enable_safety_checker": False,
    }


def case(name: str, pipeline, components, call, **more) -> None:
    def build():
        return made.quiet(pipeline(**components()))

    Case(name, build=build, call=call, **{"guidance": parts.OFF, "batch": parts.BATCH, **more})


case("CosmosTextToWorldPipeline", CosmosTextToWorldPipeline, lambda: first(4), lambda: CALL)
case(
    "CosmosVideoToWorldPipeline",
    CosmosVideoToWorldPipeline,
    lambda: first(5),
    lambda: {**CALL, "image": made.picture()},
)
case(
    "Cosmos2VideoToWorldPipeline",
    Cosmos2VideoToWorldPipeline,
    lambda: second(17),
    lambda: {**CALL, "image": made.picture()},
)
case(
    "Cosmos2VideoToWorldPipeline-video",
    Cosmos2VideoToWorldPipeline,
    lambda: second(17),
    lambda: {**CALL, "video": parts.video(5)},
)
case("Cosmos2_5_PredictBasePipeline", Cosmos2_5_PredictBasePipeline, newer, lambda: CALL)
case(
    "Cosmos2_5_PredictBasePipeline-video",
    Cosmos2_5_PredictBasePipeline,
    newer,
    lambda: {**CALL, "video": parts.video(5)},
    batch=None,  # one video for two prompts is refused
)
case(
    "Cosmos3OmniPipeline",
    Cosmos3OmniPipeline,
    omni,
    lambda: {**{key: value for key, value in CALL.items() if key != "max_sequence_length"}, "guidance_scale": 6.0},
    batch=None,
)
case(
    "Cosmos3OmniPipeline-image",
    Cosmos3OmniPipeline,
    omni,
    lambda: {
        **{key: value for key, value in CALL.items() if key != "max_sequence_length"},
        "guidance_scale": 6.0,
        "image": made.picture(),
    },
    batch=None,
)
