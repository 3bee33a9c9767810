"""PixArt and those around it: DiT, AuraFlow, Lumina, Hunyuan-DiT."""

from __future__ import annotations

import tiny
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanDiTControlNetPipeline,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from transformers import BertConfig, BertModel, GemmaConfig, GemmaModel

from . import image_parts as made
from .base import Case

SIZED = {"height": 32, "width": 48, "output_type": "latent"}
CALL = {**SIZED, "prompt": made.PROMPT, "negative_prompt": "a blue dog", "guidance_scale": 4.5}
PIXART = {**CALL, "max_sequence_length": 16, "use_resolution_binning": False, "clean_caption": False}
OFF = {"guidance_scale": 1.0}
PAG_OFF = {"guidance_scale": 1.0, "pag_scale": 0.0}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}


def pixart(**config) -> PixArtTransformer2DModel:
    """Its norms have no weights; it also foretells variances, which the solver leaves aside."""
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=32,
        norm_num_groups=8,
        **config,
    )
    return made.stirred(model)


def pixart_parts(**config) -> dict:
    return {
        "tokenizer": made.tokenizer(64),
        "text_encoder": made.t5_text(),
        "vae": made.kl_vae(4),
        "transformer": pixart(**config),
        "scheduler": DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    }


def dit() -> DiTPipeline:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        out_channels=8,
        sample_size=16,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    return made.quiet(DiTPipeline(made.stirred(transformer), made.kl_vae(4), scheduler))


def aura() -> AuraFlowPipeline:
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=3,
        num_single_dit_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=1024,
    )
    pipe = AuraFlowPipeline(
        tokenizer=made.tokenizer(64),
        text_encoder=tiny.wan_text_encoder(),
        vae=made.kl_vae(4),
        transformer=made.modulated(transformer, 20),
        scheduler=made.flow(1.73),
    )
    return made.quiet(pipe)


def lumina() -> LuminaPipeline:
    torch.manual_seed(0)
    transformer = LuminaNextDiT2DModel(
        sample_size=16,
        hidden_size=32,
        num_layers=4,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=16,
    )
    with torch.no_grad():  # which is not initialized
        transformer.pad_token.normal_(std=0.1)
    torch.manual_seed(1)
    text = GemmaModel(GemmaConfig(**made.decoder_sizes(16))).eval()
    return made.quiet(
        LuminaPipeline(made.stirred(transformer), made.flow(1.0), made.kl_vae(4), text, made.tokenizer(64))
    )


def lumina2() -> Lumina2Pipeline:
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=32,
        num_layers=4,
        num_refiner_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(300, 64, 64),
        cap_feat_dim=16,
    )
    vae = made.kl_vae(4, shift_factor=0.1, scaling_factor=0.4)
    return made.quiet(
        Lumina2Pipeline(made.stirred(transformer), made.flow(6.0), vae, made.gemma2_text(), made.tokenizer(64))
    )


HUNYUAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "hidden_size": 32,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 16,
    "cross_attention_dim": 32,
    "cross_attention_dim_t5": 32,
    "pooled_projection_dim": 16,
}


def hunyuan() -> dict:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    bert = BertModel(BertConfig(vocab_size=64, **sizes)).eval()
    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(num_layers=4, **HUNYUAN)
    return {
        "vae": made.kl_vae(4, levels=4),
        "text_encoder": bert,
        "tokenizer": made.tokenizer(77),
        "transformer": made.stirred(transformer),
        "scheduler": DDPMScheduler(beta_schedule="scaled_linear", beta_end=0.02, prediction_type="v_prediction"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        "text_encoder_2": made.t5_text(),
        "tokenizer_2": made.tokenizer(256),
    }


def hunyuan_controlnet() -> HunyuanDiT2DControlNetModel:
    torch.manual_seed(2)
    return made.stirred(HunyuanDiT2DControlNetModel(transformer_num_layers=4, **HUNYUAN), 101)


#: These take it that a picture is 8 times as large as its latents.
LARGE = {"height": 64, "width": 96}
HUNYUAN_CALL = {**CALL, **LARGE, "use_resolution_binning": False}

Case(
    "PixArtAlphaPipeline",
    build=lambda: made.quiet(PixArtAlphaPipeline(**pixart_parts())),
    call=lambda: PIXART,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "PixArtSigmaPipeline",
    build=lambda: made.quiet(PixArtSigmaPipeline(**pixart_parts())),
    call=lambda: PIXART,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "PixArtSigmaPAGPipeline",
    build=lambda: made.quiet(PixArtSigmaPAGPipeline(**pixart_parts(), pag_applied_layers=["blocks.1"])),
    call=lambda: {**PIXART, "pag_scale": 2.0},
    guidance=PAG_OFF,
    batch=BATCH,
)
Case(
    "DiTPipeline",
    build=dit,
    call=lambda: {"class_labels": [3], "guidance_scale": 4.0, "output_type": "np"},
    guidance=OFF,
    batch={"class_labels": [3, 5]},
)
Case(
    "AuraFlowPipeline",
    build=aura,
    call=lambda: {**CALL, "max_sequence_length": 16},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "LuminaPipeline",
    build=lumina,
    call=lambda: {**CALL, **LARGE, "max_sequence_length": 16, "clean_caption": False},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "Lumina2Pipeline",
    build=lumina2,
    call=lambda: {**CALL, **LARGE, "max_sequence_length": 16, "system_prompt": "a dog"},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "HunyuanDiTPipeline",
    build=lambda: made.quiet(HunyuanDiTPipeline(**hunyuan())),
    call=lambda: HUNYUAN_CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "HunyuanDiTPAGPipeline",
    build=lambda: made.quiet(HunyuanDiTPAGPipeline(**hunyuan(), pag_applied_layers=["blocks.1"])),
    call=lambda: {**HUNYUAN_CALL, "pag_scale": 2.0},
    guidance=PAG_OFF,
    batch=BATCH,
)
Case(
    "HunyuanDiTControlNetPipeline",
    build=lambda: made.quiet(HunyuanDiTControlNetPipeline(**hunyuan(), controlnet=hunyuan_controlnet())),
    call=lambda: {**HUNYUAN_CALL, "control_image": made.picture(96, 64), "controlnet_conditioning_scale": 0.7},
    guidance=OFF,
    batch=BATCH,
)
