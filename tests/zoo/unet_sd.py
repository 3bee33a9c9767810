"""Stable Diffusion 1 and 2: text to picture, pictures changed and painted over, upscalers, and other solvers."""

from __future__ import annotations

import torch
from diffusers import (
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LMSDiscreteScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UniPCMultistepScheduler,
)
from transformers import DPTConfig, DPTForDepthEstimation

from .unet_parts import (
    BATCH,
    BETAS,
    PROMPTS,
    SIZE,
    TEXT,
    case,
    clip_processor,
    clip_text,
    clip_vision,
    ddim,
    euler,
    half_mask,
    kl_vae,
    picture,
    sd_parts,
    short_tokenizer,
    unet,
)

PICTURE = picture()
PICTURES = {**BATCH, "image": picture(count=2)}
MASKED = {"image": PICTURE, "mask_image": half_mask()}
BOTH_MASKED = {**PICTURES, "mask_image": half_mask(count=2)}


def solved(variant, scheduler, **call):
    """Text to picture with another solver."""
    call = {**TEXT, **SIZE, **call}
    case(f"StableDiffusionPipeline-{variant}", StableDiffusionPipeline, lambda: sd_parts(scheduler()), call)


case("StableDiffusionPipeline", StableDiffusionPipeline, sd_parts, {**TEXT, **SIZE})
solved("ddim", ddim)
solved("ddim-eta", ddim, eta=0.5)
solved("v-prediction", lambda: ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True), guidance_rescale=0.7)
solved("euler", euler)
solved("euler-karras", lambda: euler(use_karras_sigmas=True))
solved("euler-ancestral", lambda: EulerAncestralDiscreteScheduler(**BETAS))
solved("dpm", lambda: DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True))
solved("dpm-sde", lambda: DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"))
solved("dpm-singlestep", lambda: DPMSolverSinglestepScheduler(**BETAS))
solved("deis", lambda: DEISMultistepScheduler(**BETAS))
solved("unipc", lambda: UniPCMultistepScheduler(**BETAS))
solved("heun", lambda: HeunDiscreteScheduler(**BETAS))
solved("kdpm2", lambda: KDPM2DiscreteScheduler(**BETAS))
solved("kdpm2-ancestral", lambda: KDPM2AncestralDiscreteScheduler(**BETAS))
solved("lms", lambda: LMSDiscreteScheduler(**BETAS))
solved("ddpm", lambda: DDPMScheduler(**BETAS))


case(
    "StableDiffusionImg2ImgPipeline",
    StableDiffusionImg2ImgPipeline,
    sd_parts,
    {**TEXT, "image": PICTURE, "strength": 0.8},
    batch=PICTURES,
)
case(
    "StableDiffusionInpaintPipeline",
    StableDiffusionInpaintPipeline,
    lambda: sd_parts(denoiser=unet(channels=9)),
    {**TEXT, **SIZE, **MASKED},
    batch=BOTH_MASKED,
)
case(
    "StableDiffusionInpaintPipeline-plain-unet",
    StableDiffusionInpaintPipeline,
    lambda: sd_parts(ddim()),
    {**TEXT, **SIZE, **MASKED, "strength": 0.8},
    batch=BOTH_MASKED,
)
case(
    "StableDiffusionInstructPix2PixPipeline",
    StableDiffusionInstructPix2PixPipeline,
    lambda: sd_parts(EulerAncestralDiscreteScheduler(**BETAS), unet(channels=8)),
    {**TEXT, "image": PICTURE, "image_guidance_scale": 1.5},
    guidance={"guidance_scale": 1.0, "image_guidance_scale": 1.0},
    batch=PICTURES,
)


def depth_parts():
    torch.manual_seed(40)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_in_channels=8,
    )
    parts = sd_parts(denoiser=unet(channels=5))
    del parts["safety_checker"], parts["requires_safety_checker"]
    return {**parts, "depth_estimator": DPTForDepthEstimation(config).eval(), "feature_extractor": None}


case(
    "StableDiffusionDepth2ImgPipeline",
    StableDiffusionDepth2ImgPipeline,
    depth_parts,
    {**TEXT, "image": PICTURE, "depth_map": picture(channels=1)[0]},
    batch={**PICTURES, "depth_map": picture(count=2, channels=1)[:, 0]},
)


def variation_parts():
    parts = sd_parts(image_encoder=clip_vision(), feature_extractor=clip_processor())
    del parts["text_encoder"], parts["tokenizer"]
    return parts


case(
    "StableDiffusionImageVariationPipeline",
    StableDiffusionImageVariationPipeline,
    variation_parts,
    {**SIZE, "image": PICTURE, "guidance_scale": 5.0, "output_type": "latent"},
    batch={"image": picture(count=2)},
)


def upscale_parts():
    """The picture to enlarge is beside the latents, and its noise level takes a class's place."""
    denoiser = unet(channels=7, num_class_embeds=1000, only_cross_attention=(True, False))
    parts = sd_parts(ddim(prediction_type="v_prediction"), denoiser, low_res_scheduler=DDPMScheduler(**BETAS))
    del parts["requires_safety_checker"]
    return {**parts, "max_noise_level": 350}


case(
    "StableDiffusionUpscalePipeline",
    StableDiffusionUpscalePipeline,
    upscale_parts,
    {**TEXT, "image": picture(8, 8), "noise_level": 20},
    batch={**BATCH, "image": picture(8, 8, count=2)},
)


def latent_upscale_parts():
    """A Karras U-Net without text attention at its first level; noise level and pooled text are in its time."""
    denoiser = unet(
        channels=8,
        out_channels=5,
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
        mid_block_type=None,
        act_fn="gelu",
        attention_head_dim=8,
        conv_in_kernel=1,
        conv_out_kernel=1,
        norm_num_groups=None,
        only_cross_attention=False,
        resnet_time_scale_shift="scale_shift",
        time_cond_proj_dim=128 + 16,
        time_embedding_type="fourier",
        timestep_post_act="gelu",
    )
    return {
        "vae": kl_vae(),
        "text_encoder": clip_text(),
        "tokenizer": short_tokenizer(),
        "unet": denoiser,
        "scheduler": EulerDiscreteScheduler(**BETAS, prediction_type="sample"),
    }


case(
    "StableDiffusionLatentUpscalePipeline",
    StableDiffusionLatentUpscalePipeline,
    latent_upscale_parts,
    {**TEXT, "image": picture(8, 8, channels=4)},
    batch={**BATCH, "image": picture(8, 8, count=2, channels=4)},
)


def lcm_parts():
    """The strength of the guidance is an input of the U-Net, so that there is no second call without the prompt."""
    return sd_parts(LCMScheduler(**BETAS), unet(time_cond_proj_dim=8))


LCM_TEXT = {"prompt": PROMPTS[0], "guidance_scale": 8.5, "output_type": "latent"}
case(
    "LatentConsistencyModelPipeline",
    LatentConsistencyModelPipeline,
    lcm_parts,
    {**LCM_TEXT, **SIZE},
    batch={"prompt": PROMPTS},
    guidance=None,
)
case(
    "LatentConsistencyModelImg2ImgPipeline",
    LatentConsistencyModelImg2ImgPipeline,
    lcm_parts,
    {**LCM_TEXT, "image": PICTURE},
    batch={"prompt": PROMPTS, "image": picture(count=2)},
    guidance=None,
)
