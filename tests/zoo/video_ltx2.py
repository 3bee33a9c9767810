"""LTX-2: video and sound denoised together, by two branches of one transformer."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2ConditionPipeline,
    LTX2HDRPipeline,
    LTX2ImageToVideoPipeline,
    LTX2InContextPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from . import image_parts as made
from . import video_parts as parts
from .base import Case

#: Guidance is a sum of three differences: to no prompt, to a perturbed model, to a model deaf to its other branch.
NO_PERTURBED = {"stg_scale": 0.0, "audio_stg_scale": 0.0}
NO_DEAF = {"modality_scale": 1.0, "audio_modality_scale": 1.0}
NO_TEXT = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
CALL = {
    **parts.TEXT,
    **parts.SIZE,
    "max_sequence_length": 16,
    "guidance_scale": 3.0,
    "audio_guidance_scale": 5.0,
    "spatio_temporal_guidance_blocks": [1],
}
OFF = {**NO_TEXT, **NO_PERTURBED, **NO_DEAF}


def model(**config) -> LTX2VideoTransformer3DModel:
    torch.manual_seed(0)
    model = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        vae_scale_factors=(4, 8, 8),
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=4,
        caption_channels=16,
        rope_double_precision=False,
        rope_type="split",
        **config,
    )
    with torch.no_grad():
        for name, values in model.named_parameters():  # these are not initialized
            if "scale_shift_table" in name:
                values.normal_(std=0.1)
    return made.stirred(model)


def connectors() -> LTX2TextConnectors:
    """Make the prompt's states of every layer one text for either branch."""
    torch.manual_seed(1)
    return LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        causal_temporal_positioning=False,
        rope_type="split",
    ).eval()


def vae() -> AutoencoderKLLTX2Video:
    """Four times fewer frames, eight times fewer rows and columns."""
    torch.manual_seed(2)
    return AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        timestep_conditioning=False,
        patch_size=2,
        patch_size_t=1,
    ).eval()


def audio_vae() -> AutoencoderKLLTX2Audio:
    torch.manual_seed(3)
    return AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        mid_block_add_attention=False,
        mel_bins=8,
    ).eval()


def vocoder() -> LTX2Vocoder:
    torch.manual_seed(4)
    return LTX2Vocoder(
        in_channels=16,
        hidden_channels=16,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    ).eval()


def gemma() -> Gemma3ForConditionalGeneration:
    """It sees pictures too, but is given none."""
    torch.manual_seed(5)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=made.decoder_sizes(16), vision_config={**vision, "image_size": 16, "patch_size": 8}
    )
    return Gemma3ForConditionalGeneration(config).eval()


def tokenizer():
    """Pads at the left, as Gemma's."""
    made_left = made.tokenizer()
    made_left.padding_side = "left"
    return made_left


def components(**others) -> dict:
    shift = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1}
    return {
        "transformer": model(),
        "connectors": connectors(),
        "vae": vae(),
        "audio_vae": audio_vae(),
        "vocoder": vocoder(),
        "text_encoder": gemma(),
        "tokenizer": tokenizer(),
        "scheduler": made.flow(1.0, **shift),
        **others,
    }


def newer(**config) -> LTX2VideoTransformer3DModel:
    """With what LTX-2.3 has beside: gated attention, texts modulated by the noise level, layers that can be skipped."""
    gates = {"gated_attn": True, "audio_gated_attn": True, "perturbed_attn": True}
    return model(**gates, cross_attn_mod=True, audio_cross_attn_mod=True, **config)


def conditions() -> dict:
    """A picture at the start, and one that is to come later and only roughly so; neither compressed as a video."""
    first = LTX2VideoCondition(frames=made.picture(), index=0, crf=0)
    later = LTX2VideoCondition(frames=made.picture(seed=17), index=2, strength=0.6, crf=0)
    return {"conditions": [first, later]}


Case(
    "LTX2Pipeline",  # four predictions a step, two of them in one forward
    build=lambda: made.quiet(LTX2Pipeline(**components(transformer=newer()))),
    call=lambda: CALL,
    guidance=OFF,
    batch=parts.BATCH,
)
Case(
    "LTX2Pipeline-text_guidance",  # as with LTX-2.0
    build=lambda: made.quiet(LTX2Pipeline(**components())),
    call=lambda: {**CALL, **NO_PERTURBED, **NO_DEAF, "use_cross_timestep": False},
    guidance=NO_TEXT,
    batch=parts.BATCH,
)
Case(
    "LTX2ImageToVideoPipeline",
    build=lambda: made.quiet(LTX2ImageToVideoPipeline(**components(transformer=newer()))),
    call=lambda: {**CALL, "image": made.picture(), "image_crf": 0},
    guidance=OFF,
)
Case(
    "LTX2ConditionPipeline",
    build=lambda: made.quiet(LTX2ConditionPipeline(**components(transformer=newer()))),
    call=lambda: {**CALL, **conditions()},
    guidance=OFF,
)
Case(
    "LTX2InContextPipeline",
    build=lambda: made.quiet(LTX2InContextPipeline(**components(transformer=newer()))),
    call=lambda: {
        **CALL,
        **conditions(),
        "reference_conditions": LTX2ReferenceCondition(frames=parts.video(9), strength=1.0),
    },
    guidance=OFF,
)
Case(
    "LTX2HDRPipeline",  # the sound is thrown away: only video is guided
    build=lambda: made.quiet(LTX2HDRPipeline(**components())),
    call=lambda: {
        **{key: value for key, value in CALL.items() if not key.startswith("audio")},
        "reference_conditions": LTX2HDRReferenceCondition(frames=parts.video(9), strength=1.0),
    },
    guidance={"guidance_scale": 1.0},
)
