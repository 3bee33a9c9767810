"""Through a picture's embedding: unCLIP and its Stable Diffusion kind, Shap-E's shapes, and Marigold's predictions."""

from __future__ import annotations

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    HeunDiscreteScheduler,
    MarigoldDepthPipeline,
    MarigoldIntrinsicsPipeline,
    MarigoldNormalsPipeline,
    PriorTransformer,
    ShapEImg2ImgPipeline,
    ShapEPipeline,
    StableUnCLIPImg2ImgPipeline,
    StableUnCLIPPipeline,
    UnCLIPImageVariationPipeline,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DModel,
)
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.shap_e import ShapERenderer
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from transformers import CLIPVisionModel

from .unet_parts import (
    BATCH,
    BETAS,
    NO_GUIDANCE,
    PROMPTS,
    SIZE,
    TEXT,
    case,
    clip_processor,
    clip_text,
    clip_vision,
    ddim,
    kl_vae,
    picture,
    pil,
    short_tokenizer,
    stirred,
    unet,
)


def prior(seed: int = 120, **config) -> PriorTransformer:
    torch.manual_seed(seed)
    usual = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 16}
    made = PriorTransformer(**{**usual, "num_embeddings": 16, **config})
    made.clip_std.data.fill_(1.0)  # zeros until they are read from weights
    return stirred(made, seed)


def stable_parts():
    """The embedding, its noise and that noise's level are the U-Net's class."""
    torch.manual_seed(121)
    denoiser = unet(122, class_embed_type="projection", projection_class_embeddings_input_dim=32)
    return {
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=16).eval(),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "tokenizer": short_tokenizer(),
        "text_encoder": clip_text(),
        "unet": denoiser,
        "scheduler": ddim(prediction_type="v_prediction"),
        "vae": kl_vae(),
    }


def stable_text_parts():
    scheduler = UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0)
    return {
        **stable_parts(),
        "prior_tokenizer": short_tokenizer(),
        "prior_text_encoder": clip_text(95, projected=True),
        "prior": prior(),
        "prior_scheduler": scheduler,
    }


case(
    "StableUnCLIPPipeline",
    StableUnCLIPPipeline,
    stable_text_parts,
    {**TEXT, **SIZE, "prior_num_inference_steps": 6},
    guidance={"guidance_scale": 1.0, "prior_guidance_scale": 1.0},
    denoisers=("prior", "unet"),
)
case(
    "StableUnCLIPImg2ImgPipeline",
    StableUnCLIPImg2ImgPipeline,
    lambda: {**stable_parts(), "image_encoder": clip_vision(), "feature_extractor": clip_processor()},
    {**TEXT, **SIZE, "image": picture(), "noise_level": 10},
    batch={**BATCH, "image": picture(count=2)},
)


def unclip_parts():
    """Pixels, made larger in a third loop whose last step has a network of its own."""
    torch.manual_seed(123)
    project = UnCLIPTextProjModel(clip_embeddings_dim=16, time_embed_dim=32, cross_attention_dim=16)
    decoder = unet(
        124,
        channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    noise = {"num_train_timesteps": 1000, "prediction_type": "epsilon"}
    return {
        "decoder": decoder,
        "text_encoder": clip_text(95, projected=True),
        "tokenizer": short_tokenizer(),
        "text_proj": project.eval(),
        "super_res_first": larger(125),
        "super_res_last": larger(126),
        "decoder_scheduler": UnCLIPScheduler(variance_type="learned_range", **noise),
        "super_res_scheduler": UnCLIPScheduler(variance_type="fixed_small_log", **noise),
    }


def larger(seed: int) -> UNet2DModel:
    torch.manual_seed(seed)
    made = UNet2DModel(
        sample_size=16,
        in_channels=6,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
        norm_num_groups=4,
        attention_head_dim=4,
    )
    return stirred(made, seed)


def unclip_text_parts():
    scheduler = UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0)
    return {**unclip_parts(), "prior": prior(), "prior_scheduler": scheduler}


OTHER_STEPS = {"super_res_num_inference_steps": 6, "output_type": "np"}
case(
    "UnCLIPPipeline",
    UnCLIPPipeline,
    unclip_text_parts,
    {"prompt": PROMPTS[0], "prior_num_inference_steps": 6, **OTHER_STEPS},
    guidance={"prior_guidance_scale": 1.0, "decoder_guidance_scale": 1.0},
    batch={"prompt": PROMPTS},
    denoisers=("prior", "decoder", "super_res_first", "super_res_last"),
    steps="decoder_num_inference_steps",
)
case(
    "UnCLIPImageVariationPipeline",
    UnCLIPImageVariationPipeline,
    lambda: {**unclip_parts(), "image_encoder": clip_vision(), "feature_extractor": clip_processor()},
    {"image": picture(), **OTHER_STEPS},
    guidance={"decoder_guidance_scale": 1.0},
    batch={"image": picture(count=2)},
    denoisers=("decoder", "super_res_first", "super_res_last"),
    steps="decoder_num_inference_steps",
)


def shape_parts(**more):
    """The latents are the weights of a small network that is a shape."""
    denoiser = prior(
        127,
        num_embeddings=8,
        embedding_proj_dim=16,
        time_embed_dim=16,
        clip_embed_dim=32,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
    )
    torch.manual_seed(128)
    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=16, d_hidden=8, n_output=12, background=(0.1, 0.1, 0.1)
    )
    scheduler = HeunDiscreteScheduler(
        beta_schedule="exp",
        num_train_timesteps=1024,
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
        clip_sample_range=1.0,
    )
    return {"prior": denoiser, "scheduler": scheduler, "shap_e_renderer": renderer.eval(), **more}


def shape_image_parts():
    encoder = CLIPVisionModel(clip_vision().config)
    encoder.load_state_dict(clip_vision().state_dict(), strict=False)
    return shape_parts(image_encoder=encoder.eval(), image_processor=clip_processor())


case(
    "ShapEPipeline",
    ShapEPipeline,
    lambda: shape_parts(text_encoder=clip_text(95, projected=True), tokenizer=short_tokenizer()),
    {"prompt": PROMPTS[0], "guidance_scale": 4.0, "output_type": "latent"},
    batch={"prompt": PROMPTS},
    denoisers=("prior",),
)


def marigold_parts():
    """A picture's latents beside those of what is predicted, under an empty prompt."""
    return {
        "unet": unet(129, channels=8),
        "vae": kl_vae(),
        "scheduler": DDIMScheduler(**BETAS, clip_sample=False, prediction_type="v_prediction", steps_offset=1),
        "text_encoder": clip_text(),
        "tokenizer": short_tokenizer(),
        "default_processing_resolution": 0,
    }


def intrinsics_parts():
    denoiser = unet(130, channels=12, out_channels=8)
    targets = {"target_names": ["albedo", "roughness"]}
    kinds = {name: {"prediction_space": "srgb"} for name in targets["target_names"]}
    return {**marigold_parts(), "unet": denoiser, "target_properties": {**targets, **kinds}}


LOOKED_AT = {"image": picture(), "ensemble_size": 1, "output_type": "np"}
for pipeline, parts, more in (
    (MarigoldDepthPipeline, marigold_parts, {"scale_invariant": True, "shift_invariant": True}),
    (MarigoldNormalsPipeline, marigold_parts, {"use_full_z_range": True}),
    (MarigoldIntrinsicsPipeline, intrinsics_parts, {}),
):
    kind = {MarigoldDepthPipeline: "depth", MarigoldNormalsPipeline: "normals"}.get(pipeline, "intrinsics")
    case(
        pipeline.__name__,
        pipeline,
        lambda parts=parts, more=more, kind=kind: {**parts(), **more, "prediction_type": kind},
        LOOKED_AT,
        guidance=None,
        batch={"image": picture(count=2)},
    )
case(
    "ShapEImg2ImgPipeline",
    ShapEImg2ImgPipeline,
    shape_image_parts,
    {"image": pil(picture())[0], "guidance_scale": 4.0, "output_type": "latent"},
    guidance=NO_GUIDANCE,
    batch={"image": picture(count=2)},
    denoisers=("prior",),
)
