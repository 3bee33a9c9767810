"""aMUSEd and VQ-Diffusion: they fill in tokens of a picture, which their schedulers draw."""

from __future__ import annotations

import torch
from diffusers import (
    AmusedImg2ImgPipeline,
    AmusedInpaintPipeline,
    AmusedPipeline,
    AmusedScheduler,
    Transformer2DModel,
    UVit2DModel,
    VQDiffusionPipeline,
    VQDiffusionScheduler,
    VQModel,
)
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import LearnedClassifierFreeSamplingEmbeddings

from . import image_parts as made
from .base import Case

CALL = {"prompt": made.PROMPT, "negative_prompt": "a blue dog", "guidance_scale": 5.0, "output_type": "pt"}
BATCH = {"prompt": made.TWO, "negative_prompt": made.TWO_NEGATIVE}
OFF = {"guidance_scale": 1.0}


def amused(kind):
    torch.manual_seed(0)
    transformer = UVit2DModel(
        hidden_size=32,
        cond_embed_dim=32,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=40,
        encoder_hidden_size=32,
        vocab_size=40,
        codebook_size=32,
        in_channels=32,
        block_out_channels=32,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=2,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        sample_size=8,
    )
    torch.manual_seed(1)
    vqvae = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        num_vq_embeddings=32,
        sample_size=8,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    return made.quiet(
        kind(
            vqvae=vqvae.eval(),
            tokenizer=made.tokenizer(77),
            text_encoder=made.clip_text(projected=True),
            transformer=made.stirred(transformer),
            scheduler=AmusedScheduler(mask_token_id=32),
        )
    )


def vq_diffusion() -> VQDiffusionPipeline:
    """Of 33 classes the last one is the mask; tells the probability of every other one, for 8 by 8 tokens."""
    torch.manual_seed(0)
    transformer = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        cross_attention_dim=32,
        num_vector_embeds=33,
        sample_size=8,
        num_embeds_ada_norm=100,
        norm_num_groups=8,
        activation_fn="geglu-approximate",
        attention_bias=True,
    )
    torch.manual_seed(1)
    vqvae = VQModel(latent_channels=8, num_vq_embeddings=32, vq_embed_dim=8, norm_num_groups=8, block_out_channels=(8,))
    pipe = VQDiffusionPipeline(
        vqvae=vqvae.eval(),
        text_encoder=made.clip_text(),
        tokenizer=made.tokenizer(16),
        transformer=made.stirred(transformer),
        scheduler=VQDiffusionScheduler(num_vec_classes=33),
        learned_classifier_free_sampling_embeddings=LearnedClassifierFreeSamplingEmbeddings(learnable=False).eval(),
    )
    return made.quiet(pipe)


Case(
    "AmusedPipeline",
    build=lambda: amused(AmusedPipeline),
    call=lambda: CALL,
    guidance=OFF,
    batch=BATCH,
)
Case(
    "AmusedImg2ImgPipeline",
    build=lambda: amused(AmusedImg2ImgPipeline),
    call=lambda: {**CALL, "image": made.picture(16, 16), "strength": 0.8},
    guidance=OFF,
    batch={**BATCH, "image": [made.picture(16, 16)] * 2},
)
Case(
    "AmusedInpaintPipeline",
    build=lambda: amused(AmusedInpaintPipeline),
    call=lambda: {**CALL, "image": made.picture(16, 16), "mask_image": made.mask(16, 16)},
    guidance=OFF,
    batch={**BATCH, "image": [made.picture(16, 16)] * 2, "mask_image": [made.mask(16, 16)] * 2},
)
Case(
    "VQDiffusionPipeline",
    build=vq_diffusion,
    call=lambda: {"prompt": made.PROMPT, "guidance_scale": 5.0, "output_type": "np"},
    guidance=OFF,
    batch={"prompt": made.TWO},
)
