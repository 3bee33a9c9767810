"""HunyuanImage, LongCat-Image, Ovis, PRX, Krea 2, ERNIE-Image, Nucleus-MoE."""

from __future__ import annotations

import tiny
import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    LongCatImageEditPipeline,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    PRXPipeline,
    PRXPixelPipeline,
    PRXTransformer2DModel,
)

from . import image_parts as made
from .base import Case
from .image_flux2 import mistral
from .image_qwen import seeing_text

SIZED = {"prompt": made.PROMPT, "negative_prompt": "a blue dog", "height": 32, "width": 48, "output_type": "latent"}
CALL = {**SIZED, "guidance_scale": 4.0}
OFF = {"guidance_scale": 1.0}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}
SHIFTED = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def hunyuan(*, distilled: bool = False) -> HunyuanImagePipeline:
    """Guides by a component of its own, with another one for prompts with words in quotes."""
    torch.manual_seed(0)
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_single_layers=3,
        num_refiner_layers=1,
        guidance_embeds=distilled,
        text_embed_dim=16,
        text_embed_2_dim=32,
        rope_axes_dim=(8, 8),
        use_meanflow=distilled,
    )
    torch.manual_seed(1)
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=32,
        scaling_factor=0.5,
    ).eval()
    guiders = {} if distilled else {"guider": guider(2), "ocr_guider": guider(3)}
    pipe = HunyuanImagePipeline(
        scheduler=made.flow(5.0),
        vae=vae,
        text_encoder=tiny.qwen_text_encoder(),
        tokenizer=made.tokenizer(16),
        text_encoder_2=made.t5_text(),
        tokenizer_2=made.tokenizer(16),
        transformer=made.modulated(transformer, 5),
        **guiders,
    )
    pipe.text_encoder.config.num_hidden_layers = 2
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0
    pipe.tokenizer_max_length = 16
    return made.quiet(pipe)


def guider(start: int) -> AdaptiveProjectedMixGuidance:
    return AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=start)


def longcat(kind):
    """Insists on 16 latent channels, packed by four; the editing pipeline enlarges its pictures to 1024 by 1024."""
    torch.manual_seed(0)
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=3,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    levels = 6 if kind is LongCatImageEditPipeline else 2
    pipe = kind(
        scheduler=made.flow(3.0, **SHIFTED),
        vae=made.kl_vae(16, levels=levels, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=seeing_text(),
        tokenizer=made.seeing_tokenizer(),
        text_processor=made.Processor(),
        transformer=made.stirred(transformer),
    )
    pipe.tokenizer_max_length = 16
    return made.quiet(pipe)


def ovis() -> OvisImagePipeline:
    torch.manual_seed(0)
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=3,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = OvisImagePipeline(
        scheduler=made.flow(3.0, **SHIFTED),
        vae=made.kl_vae(4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=made.qwen3_text(),
        tokenizer=made.tokenizer(64, made.CHAT),
        transformer=made.stirred(transformer),
    )
    pipe.system_prompt, pipe.user_prompt_begin_id = "", 0
    return made.quiet(pipe)


PRX = {"hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 4, "axes_dim": [8, 8], "context_in_dim": 16}


def prx() -> PRXPipeline:
    torch.manual_seed(0)
    transformer = PRXTransformer2DModel(in_channels=4, **PRX)
    pipe = PRXPipeline(
        made.stirred(transformer),
        made.flow(3.0),
        made.gemma2_text(),
        made.tokenizer(16),
        made.kl_vae(4, shift_factor=0.0, scaling_factor=1.0),
    )
    return made.quiet(pipe)


def prx_pixel() -> PRXPixelPipeline:
    """Has no autoencoder: it denoises the pixels themselves, patches of them."""
    torch.manual_seed(0)
    transformer = PRXTransformer2DModel(in_channels=3, patch_size=4, bottleneck_size=16, resolution_embeds=True, **PRX)
    pipe = PRXPixelPipeline(
        made.stirred(transformer), made.flow(3.0), made.qwen3_text(), made.tokenizer(16), prompt_max_tokens=16
    )
    return made.quiet(pipe)


def krea2() -> Krea2Pipeline:
    torch.manual_seed(0)
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4),
    )
    pipe = Krea2Pipeline(
        scheduler=made.flow(1.0, **SHIFTED, max_image_seq_len=6400),
        vae=tiny.qwen_vae(),
        text_encoder=made.qwen3vl_text(head=False),
        tokenizer=made.tokenizer(64),
        transformer=made.stirred(transformer),
        text_encoder_select_layers=(0, 1, 2),
    )
    pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_suffix = "", "a dog"
    pipe.prompt_template_encode_start_idx, pipe.prompt_template_encode_num_suffix_tokens = 0, 3
    return made.quiet(pipe)


def ernie() -> ErnieImagePipeline:
    torch.manual_seed(0)
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=4,
        ffn_hidden_size=64,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(8, 4, 4),
    )
    pipe = ErnieImagePipeline(
        transformer=made.stirred(transformer),
        vae=made.kl_vae(4, kind=AutoencoderKLFlux2, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=mistral().model,
        tokenizer=made.tokenizer(64),
        scheduler=made.flow(3.0),
    )
    return made.quiet(pipe)


def nucleus() -> NucleusMoEImagePipeline:
    """The blocks between the first three and the last choose experts for their tokens."""
    torch.manual_seed(0)
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=6,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )
    with torch.no_grad():  # these are not initialized
        for name, value in transformer.named_parameters():
            if name.endswith(("gate_up_proj", "down_proj")):
                value.normal_(std=0.1)
    pipe = NucleusMoEImagePipeline(
        transformer=made.stirred(transformer),
        scheduler=made.flow(1.0, **SHIFTED),
        vae=tiny.qwen_vae(),
        text_encoder=made.qwen3vl_text(),
        processor=made.Processor(16, made.LAST),
    )
    return made.quiet(pipe)


Case("HunyuanImagePipeline", build=hunyuan, call=lambda: SIZED, batch=BATCH)
Case(
    "HunyuanImagePipeline-words",  # in quotes: they are encoded by themselves, and guided otherwise
    build=hunyuan,
    call=lambda: {**SIZED, "prompt": 'a red cat, "dog runs"'},
    batch={"prompt": ['a red cat, "dog runs"', 'a dog, "cat"'], "negative_prompt": made.TWO_NEGATIVE},
)
Case(
    "HunyuanImagePipeline-distilled",  # predicts the mean velocity between two noise levels
    build=lambda: hunyuan(distilled=True),
    call=lambda: {**SIZED, "negative_prompt": None, "distilled_guidance_scale": 3.25},
    batch={"prompt": made.TWO},
)
Case(
    "LongCatImagePipeline",
    build=lambda: longcat(LongCatImagePipeline),
    call=lambda: {**CALL, "enable_prompt_rewrite": False},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "LongCatImageEditPipeline",
    build=lambda: longcat(LongCatImageEditPipeline),
    call=lambda: {
        "prompt": made.PROMPT,
        "negative_prompt": "a blue dog",
        "image": made.picture(48, 32),
        "guidance_scale": 4.0,
        "output_type": "latent",
    },
    guidance=OFF,
)
Case(
    "OvisImagePipeline",
    build=ovis,
    call=lambda: {**CALL, "max_sequence_length": 16},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "PRXPipeline",
    build=prx,
    call=lambda: {**CALL, "use_resolution_binning": False},
    guidance=OFF,
    batch={**BATCH, **OFF},  # with guidance it has two timesteps for four latents,
)
Case(
    "PRXPixelPipeline",
    build=prx_pixel,
    call=lambda: {**CALL, "use_resolution_binning": False, "output_type": "pt"},
    guidance=OFF,
    batch={**BATCH, **OFF},  # with guidance it has two timesteps for four latents,
)
Case(
    "Krea2Pipeline",
    build=krea2,
    call=lambda: {**CALL, "max_sequence_length": 16},
    guidance={"guidance_scale": 0.0},
    batch=BATCH,
)
Case(
    "ErnieImagePipeline",
    build=ernie,
    call=lambda: {**CALL, "use_pe": False},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "NucleusMoEImagePipeline",
    build=nucleus,
    call=lambda: {**CALL, "max_sequence_length": 64, "return_index": -1},
    guidance=OFF,
    batch=BATCH,
)
