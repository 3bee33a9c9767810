"""Stable Cascade and Wuerstchen: a prior makes a small picture's latents, a decoder larger ones from them."""

from __future__ import annotations

import torch
from diffusers import (
    DDPMWuerstchenScheduler,
    StableCascadeCombinedPipeline,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    WuerstchenCombinedPipeline,
    WuerstchenDecoderPipeline,
    WuerstchenPriorPipeline,
)
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import WuerstchenDiffNeXt
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior

from .unet_parts import BATCH, PROMPTS, case, clip_processor, clip_text, clip_vision, picture, short_tokenizer, stirred

TEXT = {"prompt": PROMPTS[0], "negative_prompt": "red", "guidance_scale": 4.0}
LAYERS = ("SDCascadeResBlock", "SDCascadeTimestepBlock")


def vqgan() -> PaellaVQModel:
    torch.manual_seed(80)
    return PaellaVQModel(embed_dim=16, bottleneck_blocks=1, num_vq_embeddings=8).eval()


def cascade_unet(seed: int, **config) -> StableCascadeUNet:
    """Two levels, their text's attention in the second or in both."""
    torch.manual_seed(seed)
    usual = {
        "conditioning_dim": 16,
        "block_out_channels": (16, 16),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "clip_text_pooled_in_channels": 16,
        "dropout": (0.1, 0.1),
    }
    return stirred(StableCascadeUNet(**{**usual, **config}), seed)


def cascade_prior_parts():
    prior = cascade_unet(81, switch_level=(False,), clip_image_in_channels=16, clip_text_in_channels=16)
    return {
        "tokenizer": short_tokenizer(),
        "text_encoder": clip_text(82, projected=True),
        "prior": prior,
        "scheduler": DDPMWuerstchenScheduler(),
        "resolution_multiple": 4.0,
        "feature_extractor": clip_processor(),
        "image_encoder": clip_vision(),
    }


def cascade_decoder_parts():
    """The prior's latents go into the first level, from which the picture is two times finer."""
    decoder = cascade_unet(
        83,
        in_channels=4,
        out_channels=4,
        num_attention_heads=(-1, 2),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(2, 1),
        block_types_per_layer=(LAYERS, (*LAYERS, "SDCascadeAttnBlock")),
        switch_level=None,
        effnet_in_channels=16,
        pixel_mapper_in_channels=3,
        patch_size=2,
    )
    return {
        "decoder": decoder,
        "tokenizer": short_tokenizer(),
        "text_encoder": clip_text(82, projected=True),
        "scheduler": DDPMWuerstchenScheduler(),
        "vqgan": vqgan(),
        "latent_dim_scale": 4.0,
    }


case(
    "StableCascadePriorPipeline",
    StableCascadePriorPipeline,
    cascade_prior_parts,
    {**TEXT, "height": 32, "width": 32, "output_type": "pt"},
    denoisers=("prior",),
)
case(
    "StableCascadePriorPipeline-with-picture",
    StableCascadePriorPipeline,
    cascade_prior_parts,
    {**TEXT, "images": [picture()[0]], "height": 32, "width": 32, "output_type": "pt"},
    batch=None,
    denoisers=("prior",),
)
EMBEDDINGS = 2 * picture(4, 4, channels=16, seed=84, count=2) - 1
case(
    "StableCascadeDecoderPipeline",
    StableCascadeDecoderPipeline,
    cascade_decoder_parts,
    {**TEXT, "image_embeddings": EMBEDDINGS[:1], "output_type": "latent"},
    batch={**BATCH, "image_embeddings": EMBEDDINGS},
    denoisers=("decoder",),
)


def both(decoder, prior, renamed):
    """The parts of a combined pipeline: the decoder's, and the prior's with ``prior_`` before their names."""
    return {**decoder, **{f"prior_{name}": prior[name] for name in renamed}}


def cascade_parts():
    decoder, prior = cascade_decoder_parts(), cascade_prior_parts()
    del decoder["latent_dim_scale"]
    names = ("prior", "text_encoder", "tokenizer", "scheduler", "feature_extractor", "image_encoder")
    return both(decoder, prior, names)


COMBINED = {
    "prompt": PROMPTS[0],
    "negative_prompt": "red",
    "prior_guidance_scale": 4.0,
    "decoder_guidance_scale": 2.0,
    "prior_num_inference_steps": 6,
    "output_type": "latent",
}
NEITHER = {"prior_guidance_scale": 1.0, "decoder_guidance_scale": 0.0}


def combined_cascade(**parts):
    """The prior's latents are 42 times smaller than a picture, unless it is told otherwise."""
    pipe = StableCascadeCombinedPipeline(**parts)
    pipe.prior_pipe.register_to_config(resolution_multiple=4.0)
    pipe.decoder_pipe.register_to_config(latent_dim_scale=4.0)
    return pipe


case(
    "StableCascadeCombinedPipeline",
    combined_cascade,
    cascade_parts,
    {**COMBINED, "height": 32, "width": 32},
    guidance=NEITHER,
    denoisers=("prior_prior", "decoder"),
)


def wuerstchen_prior_parts():
    torch.manual_seed(85)
    prior = WuerstchenPrior(c_in=4, c=16, c_cond=16, c_r=8, depth=2, nhead=2)
    prior.out[1].weight.data.mul_(0.1)  # half of it divides, less one
    return {
        "tokenizer": short_tokenizer(),
        "text_encoder": clip_text(86),
        "prior": stirred(prior, 85, 0.02),
        "scheduler": DDPMWuerstchenScheduler(),
        "resolution_multiple": 4.0,
    }


def wuerstchen_decoder_parts():
    torch.manual_seed(87)
    decoder = WuerstchenDiffNeXt(
        c_in=4,
        c_out=4,
        c_r=8,
        c_cond=16,
        c_hidden=[8, 16],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=4,
        clip_embd=16,
    )
    return {
        "tokenizer": short_tokenizer(),
        "text_encoder": clip_text(88),
        "decoder": stirred(decoder, 87, 0.02),
        "scheduler": DDPMWuerstchenScheduler(),
        "vqgan": vqgan(),
        "latent_dim_scale": 4.0,
    }


case(
    "WuerstchenPriorPipeline",
    WuerstchenPriorPipeline,
    wuerstchen_prior_parts,
    {**TEXT, "height": 32, "width": 32, "output_type": "pt"},
    denoisers=("prior",),
)
case(
    "WuerstchenDecoderPipeline",
    WuerstchenDecoderPipeline,
    wuerstchen_decoder_parts,
    {**TEXT, "image_embeddings": EMBEDDINGS[:1, :4], "output_type": "latent"},
    batch={"image_embeddings": EMBEDDINGS[:, :4]},  # it repeats its prompts for every one of these
    denoisers=("decoder",),
)


def wuerstchen_parts():
    decoder, prior = wuerstchen_decoder_parts(), wuerstchen_prior_parts()
    del decoder["latent_dim_scale"]
    return both(decoder, prior, ("prior", "text_encoder", "tokenizer", "scheduler"))


def combined_wuerstchen(**parts):
    pipe = WuerstchenCombinedPipeline(**parts)
    pipe.prior_pipe.register_to_config(resolution_multiple=4.0)
    pipe.decoder_pipe.register_to_config(latent_dim_scale=4.0)
    return pipe


case(
    "WuerstchenCombinedPipeline",
    combined_wuerstchen,
    wuerstchen_parts,
    {**COMBINED, "height": 32, "width": 32},
    guidance=NEITHER,
    batch=None,  # its decoder takes one prompt
    denoisers=("prior_prior", "decoder"),
)
