"""Pipelines with Qwen 3 VL: Qwen-Image 2.1, JoyImage, Ideogram 4, DreamLite, Bria Fibo 2."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage21,
    AutoencoderKLWan,
    AutoencoderTiny,
    BriaFibo2Pipeline,
    BriaFibo2Transformer2DModel,
    DreamLiteMobilePipeline,
    DreamLitePipeline,
    DreamLiteUNetModel,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    JoyImageEditPipeline,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)

from . import image_parts as made
from .base import Case

PROMPTS = {"prompt": made.PROMPT, "negative_prompt": "a blue dog"}
CALL = {**PROMPTS, "height": 32, "width": 64, "output_type": "latent"}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}
OFF = {"guidance_scale": 1.0}
SHIFTED = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def qwen21() -> QwenImage21Pipeline:
    """Keeps the keys and values of its conditions from the first step on; a picture has an alpha channel."""
    torch.manual_seed(0)
    transformer = QwenImage21Transformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    torch.manual_seed(1)
    vae = AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=8,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8,
    )
    pipe = QwenImage21Pipeline(
        scheduler=made.flow(1.0, **SHIFTED),
        vae=vae.eval(),
        text_encoder=made.qwen3vl_text(),
        processor=made.Processor(16, made.LAST),
        transformer=made.stirred(transformer),
    )
    pipe.prompt_template_t2i, pipe.prompt_template_ti2i, pipe._drop_idx = "{}", "<image1>" + made.SEEN + "{}", 0
    return made.quiet(pipe)


def deep_vae() -> AutoencoderKLWan:
    """Makes pictures 32 times smaller: JoyImage enlarges its pictures to about a million pixels."""
    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=2,
        z_dim=16,
        dim_mult=[1] * 6,
        num_res_blocks=0,
        temperal_downsample=[False] * 5,
        scale_factor_spatial=32,
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    ).eval()


def joy(kind, denoiser):
    torch.manual_seed(0)
    transformer = denoiser(
        in_channels=16,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        num_layers=4,
        rope_dim_list=[4, 6, 6],
    )
    processor = made.Processor(16)
    pipe = kind(
        scheduler=made.flow(1.5),
        vae=deep_vae(),
        text_encoder=made.qwen3vl_text(),
        tokenizer=processor.tokenizer,
        transformer=made.stirred(transformer),
        processor=processor,
    )
    pipe.prompt_template_encode = dict.fromkeys(pipe.prompt_template_encode, "{}")
    pipe.prompt_template_encode_start_idx = dict.fromkeys(pipe.prompt_template_encode_start_idx, 0)
    return made.quiet(pipe)


def ideogram_transformer(seed: int) -> Ideogram4Transformer2DModel:
    """Takes the states of 13 text layers."""
    torch.manual_seed(seed)
    model = Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=64,
        adaln_dim=16,
        llm_features_dim=13 * 16,
        mrope_section=(4, 2, 2),
    )
    return made.stirred(model, 100 + seed)


def ideogram() -> Ideogram4Pipeline:
    """Has a transformer of its own for the other side of the guidance; taps text layers up to the 36th."""
    pipe = Ideogram4Pipeline(
        scheduler=made.flow(1.0),
        vae=made.kl_vae(4, kind=AutoencoderKLFlux2, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=made.qwen3vl_text(layers=36, head=False),
        tokenizer=made.tokenizer(64, made.LAST),
        transformer=ideogram_transformer(0),
        unconditional_transformer=ideogram_transformer(1),
    )
    return made.quiet(pipe)


def dreamlite(kind):
    """A U-Net of transformer blocks; the picture to edit lies beside the new one."""
    torch.manual_seed(0)
    unet = DreamLiteUNetModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        block_out_channels=(16, 32),
        cross_attention_dim=16,
        attention_head_dim=8,
        layers_per_block=1,
        norm_num_groups=8,
        transformer_layers_per_block=1,
    )
    torch.manual_seed(1)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    processor = made.Processor(16)
    pipe = kind(
        text_encoder=made.qwen3vl_text(),
        tokenizer=processor.tokenizer,
        processor=processor,
        vae=vae.eval(),
        unet=made.stirred(unet),
        scheduler=made.flow(1.0, **SHIFTED),
    )
    for name in ("generate", "edit"):
        setattr(pipe, f"prompt_template_encode_{name}", "{}" if name == "generate" else made.SEEN + "{}")
        setattr(pipe, f"prompt_template_encode_{name}_start_idx", 0)
    return made.quiet(pipe)


def fibo2() -> BriaFibo2Pipeline:
    """Gives the text to a resampler and, at some blocks, to the transformer itself: each time, three layers' states."""
    torch.manual_seed(0)
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=3 * 16,
        injection_layer_ids=(1, 3),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=4,
        gist_min_text_len=4,
        gist_max_text_len=32,
        axes_dims=(8, 4, 4),
        axes_lens=(256, 64, 64),
    )
    pipe = BriaFibo2Pipeline(
        transformer=made.stirred(transformer),
        scheduler=made.flow(1.0, **SHIFTED),
        vae=made.kl_vae(4, kind=AutoencoderKLFlux2, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=made.qwen3vl_text(),
        processor=made.Processor(16),
    )
    pipe.prompt_template_encode = "{}"
    pipe.text_encoder_out_layers = ((0, 1, 2),) * 3
    return made.quiet(pipe)


Case(
    "QwenImage21Pipeline",
    build=qwen21,
    call=lambda: {**CALL, "true_cfg_scale": 4.0},
    guidance={"true_cfg_scale": 1.0, "negative_prompt": None},
    batch=BATCH,
)
Case(
    "QwenImage21Pipeline-edit",
    build=qwen21,
    call=lambda: {**CALL, "true_cfg_scale": 4.0, "image": made.picture(64, 64), "output_resolution": 64},
    guidance={"true_cfg_scale": 1.0, "negative_prompt": None},
)
Case(
    "QwenImage21Pipeline-uncached",
    build=qwen21,
    call=lambda: {**CALL, "true_cfg_scale": 4.0, "use_kv_cache": False},
    guidance={"true_cfg_scale": 1.0, "negative_prompt": None},
    batch=BATCH,
)
Case(
    "JoyImageEditPipeline",
    build=lambda: joy(JoyImageEditPipeline, JoyImageEditTransformer3DModel),
    call=lambda: {
        **PROMPTS,
        "image": made.picture(48, 32),
        "guidance_scale": 4.0,
        "max_sequence_length": 64,
        "output_type": "latent",
    },
    guidance=OFF,
)
Case(
    "JoyImageEditPlusPipeline",
    build=lambda: joy(JoyImageEditPlusPipeline, JoyImageEditPlusTransformer3DModel),
    call=lambda: {
        **CALL,
        "height": 256,
        "width": 384,
        "images": [made.picture(), made.picture(seed=18)],
        "guidance_scale": 4.0,
        "max_sequence_length": 64,
    },
    guidance=OFF,
)
Case(
    "Ideogram4Pipeline",
    build=ideogram,
    call=lambda: {
        "prompt": made.PROMPT,
        "height": 32,
        "width": 48,
        "guidance_scale": 7.0,
        "guidance_schedule": None,
        "max_sequence_length": 16,
        "output_type": "latent",
    },
    guidance=OFF,
    batch={"prompt": made.TWO},
    denoisers=("transformer", "unconditional_transformer"),
)
Case(
    "DreamLitePipeline",
    build=lambda: dreamlite(DreamLitePipeline),
    call=lambda: {**CALL, "guidance_scale": 3.5, "max_sequence_length": 16},
    guidance=OFF,
    denoisers=("unet",),
)
Case(
    "DreamLitePipeline-edit",
    build=lambda: dreamlite(DreamLitePipeline),
    call=lambda: {**CALL, "image": made.picture(64, 32), "guidance_scale": 3.5, "image_guidance_scale": 1.5},
    guidance={"guidance_scale": 1.0, "image_guidance_scale": 1.0},
    denoisers=("unet",),
)
Case(
    "DreamLiteMobilePipeline",
    build=lambda: dreamlite(DreamLiteMobilePipeline),
    call=lambda: {"prompt": made.PROMPT, "height": 32, "width": 64, "max_sequence_length": 16, "output_type": "latent"},
    denoisers=("unet",),
)
Case(
    "BriaFibo2Pipeline",
    build=fibo2,
    call=lambda: {**CALL, "guidance_scale": 5.0},
    guidance=OFF,
    batch=BATCH,
)
