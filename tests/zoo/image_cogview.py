"""CogView 3 Plus and 4, Bria and its Fibo models, HiDream."""

from __future__ import annotations

import json

import torch
from diffusers import (
    AutoencoderKLWan,
    BriaFiboEditPipeline,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    BriaPipeline,
    BriaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4ControlPipeline,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
)
from transformers import GlmConfig, GlmModel, LlamaConfig, LlamaForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

from . import image_parts as made
from .base import Case

#: CogView takes it that a picture is 8 times as large as its latents, Fibo 16 times.
CALL = {
    "prompt": made.PROMPT,
    "negative_prompt": "a blue dog",
    "guidance_scale": 5.0,
    "height": 64,
    "width": 96,
    "max_sequence_length": 16,
    "output_type": "latent",
}
OFF = {"guidance_scale": 1.0}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}
#: Fibo's prompts are JSON.
EDIT = json.dumps({"text": "a red cat", "edit_instruction": "a dog runs"})


def cogview3() -> CogView3PlusPipeline:
    torch.manual_seed(0)
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=16,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", snr_shift_scale=4.0, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipe = CogView3PlusPipeline(
        tokenizer=made.tokenizer(64),
        text_encoder=made.t5_text(),
        vae=made.kl_vae(4, levels=4),
        transformer=made.stirred(transformer),
        scheduler=scheduler,
    )
    return made.quiet(pipe)


def cogview4_parts(in_channels: int = 4) -> dict:
    torch.manual_seed(1)
    text = GlmModel(GlmConfig(**made.decoder_sizes(32))).eval()
    torch.manual_seed(0)
    transformer = CogView4Transformer2DModel(
        in_channels=in_channels,
        out_channels=4,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=4,
        rope_axes_dim=(16, 16),
        sample_size=16,
    )
    return {
        "tokenizer": made.tokenizer(64),
        "text_encoder": text,
        "vae": made.kl_vae(4, levels=4),
        "transformer": made.stirred(transformer),
        "scheduler": made.flow(
            1.0,
            use_dynamic_shifting=True,
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            time_shift_type="linear",
        ),
    }


BRIA = {
    "num_layers": 3,
    "num_single_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": [4, 4, 8],
}


def bria() -> BriaPipeline:
    torch.manual_seed(0)
    transformer = BriaTransformer2DModel(in_channels=16, joint_attention_dim=32, **BRIA)
    vae = made.kl_vae(4, levels=4, shift_factor=0, scaling_factor=0.13)
    scheduler = made.flow(1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    return made.quiet(BriaPipeline(made.stirred(transformer), scheduler, vae, made.t5_text(), made.tokenizer(64)))


def fibo_vae() -> AutoencoderKLWan:
    torch.manual_seed(2)
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        is_residual=True,
        scale_factor_spatial=16,
        temperal_downsample=[False, True, True],
        z_dim=16,
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    ).eval()


def fibo_parts() -> dict:
    """Every block takes the state of a text layer of its own; a caption's last two are joined for the attention."""
    torch.manual_seed(1)
    text = SmolLM3ForCausalLM(SmolLM3Config(**made.decoder_sizes(16))).eval()
    torch.manual_seed(0)
    transformer = BriaFiboTransformer2DModel(in_channels=16, joint_attention_dim=32, text_encoder_dim=16, **BRIA)
    return {
        "transformer": made.stirred(transformer),
        "scheduler": made.flow(1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        "vae": fibo_vae(),
        "text_encoder": text,
        "tokenizer": made.tokenizer(64),
    }


def hidream() -> HiDreamImagePipeline:
    """Four text encoders; every block takes a layer of the fourth; its feed-forward layers are mixtures of experts."""
    torch.manual_seed(1)
    config = LlamaConfig(**made.decoder_sizes(16), attn_implementation="eager")
    llama = LlamaForCausalLM(config).eval()
    torch.manual_seed(0)
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_single_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        caption_channels=[32, 16],
        text_emb_dim=32,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(16, 16),
        llama_layers=(0, 1, 0, 1, 0, 1),
    )
    pipe = HiDreamImagePipeline(
        scheduler=made.flow(3.0),
        vae=made.kl_vae(4, scaling_factor=0.36, shift_factor=0.1),
        text_encoder=made.clip_text(11, width=16, projected=True, max_position_embeddings=128),
        tokenizer=made.tokenizer(128),
        text_encoder_2=made.clip_text(21, width=16, projected=True, max_position_embeddings=128),
        tokenizer_2=made.tokenizer(128),
        text_encoder_3=made.t5_text(),
        tokenizer_3=made.tokenizer(128),
        text_encoder_4=llama,
        tokenizer_4=made.tokenizer(128),
        transformer=made.stirred(transformer),
    )
    pipe.default_sample_size = 16  # or it would scale every size to 2048 by 2048
    return made.quiet(pipe)


Case(
    "CogView3PlusPipeline",
    build=cogview3,
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "CogView4Pipeline",
    build=lambda: made.quiet(CogView4Pipeline(**cogview4_parts())),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "CogView4ControlPipeline",
    build=lambda: made.quiet(CogView4ControlPipeline(**cogview4_parts(8))),
    call=lambda: {**CALL, "control_image": made.picture(96, 64)},
    guidance=OFF,
    batch=BATCH,
)
Case(
    "BriaPipeline",
    build=bria,
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "BriaFiboPipeline",
    build=lambda: made.quiet(BriaFiboPipeline(**fibo_parts())),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "BriaFiboEditPipeline",
    build=lambda: made.quiet(BriaFiboEditPipeline(**fibo_parts())),
    call=lambda: {**CALL, "prompt": EDIT, "image": made.picture(96, 64), "_auto_resize": False},
    guidance=OFF,
)
Case(
    "HiDreamImagePipeline",
    build=hidream,
    call=lambda: {**CALL, "height": 32, "width": 32},
    guidance=OFF,
    batch=BATCH,
)
