"""AnyFlow, Kandinsky 5, Motif Video, SANA Video, Helios."""

from __future__ import annotations

import tiny
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    AutoencoderKLHunyuanVideo,
    ClassifierFreeGuidance,
    DPMSolverMultistepScheduler,
    FlowMapEulerDiscreteScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    Kandinsky5I2VPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    MotifVideoImage2VideoPipeline,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)
from transformers import (
    SiglipImageProcessor,
    SiglipVisionConfig,
    T5Gemma2Encoder,
    T5Gemma2EncoderConfig,
    T5Gemma2TextConfig,
)

from . import image_parts as made
from . import image_qwen
from . import video_parts as parts
from . import video_wan as wan
from .base import Case

CALL = {**parts.TEXT, **parts.SIZE, "guidance_scale": 5.0, "max_sequence_length": 8}
WAN = {key: value for key, value in wan.SIZES.items() if key != "rope_max_seq_len"}
#: Guidance is a component there.
UNGUIDED = {key: value for key, value in CALL.items() if key != "guidance_scale"}
SANA = {
    **parts.TEXT,
    "height": 32,
    "width": 32,
    "frames": 9,
    "guidance_scale": 6.0,
    "max_sequence_length": 16,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
}


def anyflow(pipeline, kind, **config):
    """Moves from any noise level to any other: it is told both."""
    torch.manual_seed(0)
    transformer = made.stirred(kind(**wan.SIZES, **config))
    scheduler = FlowMapEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0)
    return made.quiet(pipeline(**parts.wan_parts(transformer=transformer, scheduler=scheduler)))


def kandinsky(kind, *, seeing: bool = False):
    torch.manual_seed(0)
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=32,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=2,
        num_visual_blocks=4,
        axes_dims=(4, 4, 8),
        visual_cond=seeing,
    )
    torch.manual_seed(1)
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()
    pipe = kind(
        transformer=made.stirred(transformer),
        vae=vae,
        text_encoder=image_qwen.seeing_text(),
        tokenizer=made.Processor(),
        text_encoder_2=made.clip_text(width=16),
        tokenizer_2=made.tokenizer(77),
        scheduler=made.flow(5.0),
    )
    pipe.prompt_template, pipe.prompt_template_encode_start_idx = "{}", 0
    return made.quiet(pipe)


def motif(kind, guider, **config):
    torch.manual_seed(0)
    transformer = MotifVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_single_layers=3,
        patch_size=2,
        text_embed_dim=32,
        rope_axes_dim=(4, 6, 6),
        **config,
    )
    torch.manual_seed(2)
    text = T5Gemma2TextConfig(**{**made.decoder_sizes(32), "head_dim": 16, "dropout_rate": 0.0})
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    seen = SiglipVisionConfig(**sizes, image_size=16, patch_size=4)
    pipe = kind(
        transformer=made.stirred(transformer),
        vae=tiny.wan_vae(),
        text_encoder=T5Gemma2Encoder(T5Gemma2EncoderConfig(text_config=text, vision_config=seen)).eval(),
        tokenizer=made.tokenizer(),
        scheduler=made.flow(7.0),
        guider=guider,
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
    )
    return made.quiet(pipe)


def sana(kind, scheduler):
    torch.manual_seed(0)
    transformer = SanaVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=4,
        rope_max_seq_len=32,
    )
    pipe = kind(
        transformer=made.stirred(transformer),
        vae=tiny.wan_vae(),
        text_encoder=made.gemma2_text(),
        tokenizer=made.tokenizer(64),
        scheduler=scheduler,
    )
    return made.quiet(pipe)


def dpm() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)


def helios_model() -> HeliosTransformer3DModel:
    torch.manual_seed(0)
    return made.stirred(HeliosTransformer3DModel(**WAN, rope_dim=(4, 6, 6)))


def helios_scheduler(stages: int = 1) -> HeliosScheduler:
    """At a gamma of 1/3, as released, one eigenvalue of the noise's covariance is 0: a CPU may find it below that."""
    bounds = [i / stages for i in range(stages + 1)]
    if stages == 1:
        return HeliosScheduler(stages=1, stage_range=bounds, use_dynamic_shifting=True)
    return HeliosScheduler(stages=stages, stage_range=bounds, gamma=0.3)


def helios(kind, stages: int = 1):
    return made.quiet(kind(**parts.wan_parts(transformer=helios_model(), scheduler=helios_scheduler(stages))))


def case(name: str, build, call, **more) -> None:
    Case(name, build=build, call=call, **{"guidance": parts.OFF, "batch": parts.BATCH, **more})


case("AnyFlowPipeline", lambda: anyflow(AnyFlowPipeline, AnyFlowTransformer3DModel), lambda: CALL)
case(
    "AnyFlowFARPipeline",  # chunk after chunk, with the states of those before kept
    lambda: anyflow(AnyFlowFARPipeline, AnyFlowFARTransformer3DModel, full_chunk_limit=3, chunk_partition=(1, 1, 1)),
    lambda: CALL,
)
case("Kandinsky5T2VPipeline", lambda: kandinsky(Kandinsky5T2VPipeline), lambda: {**CALL, "max_sequence_length": 16})
case(
    "Kandinsky5I2VPipeline",
    lambda: kandinsky(Kandinsky5I2VPipeline, seeing=True),
    # The first four latent frames are made like those after them: there have to be some.
    lambda: {**CALL, "num_frames": 25, "max_sequence_length": 16, "image": made.picture()},
    batch=None,  # the stand-in of its processor reads one prompt
)
case(
    "MotifVideoPipeline",
    lambda: motif(MotifVideoPipeline, AdaptiveProjectedGuidance(guidance_scale=8.0)),
    lambda: {**UNGUIDED, "max_sequence_length": 16},
    guidance=None,
)
case(
    "MotifVideoPipeline-ClassifierFreeGuidance",
    lambda: motif(MotifVideoPipeline, ClassifierFreeGuidance(guidance_scale=8.0)),
    lambda: {**UNGUIDED, "max_sequence_length": 16},
    guidance=None,
)
case(
    "MotifVideoImage2VideoPipeline",
    lambda: motif(MotifVideoImage2VideoPipeline, AdaptiveProjectedGuidance(guidance_scale=8.0), image_embed_dim=16),
    lambda: {**UNGUIDED, "max_sequence_length": 16, "image": made.picture()},
    guidance=None,
    batch=None,
)
case("SanaVideoPipeline", lambda: sana(SanaVideoPipeline, dpm()), lambda: SANA)
case(
    "SanaImageToVideoPipeline",
    lambda: sana(SanaImageToVideoPipeline, made.flow(8.0)),
    lambda: {**SANA, "image": made.picture()},
)
case(
    "HeliosPipeline",
    lambda: helios(HeliosPipeline),
    lambda: {**CALL, "num_latent_frames_per_chunk": 3},
)
case(
    "HeliosPipeline-chunks",  # two chunks, the second after a history of the first
    lambda: helios(HeliosPipeline),
    lambda: {**CALL, "num_latent_frames_per_chunk": 3, "num_frames": 18},
)
case(
    "HeliosPyramidPipeline",  # three sizes, two steps at each
    lambda: helios(HeliosPyramidPipeline, stages=3),
    lambda: {
        **CALL,
        "height": 64,
        "width": 64,
        "num_latent_frames_per_chunk": 3,
        "pyramid_num_inference_steps_list": [2, 2, 2],
    },
    steps=None,
)
