"""Stable Diffusion with other guidance, layouts, several views, or several steps at once."""

from __future__ import annotations

import torch
from diffusers import (
    CycleDiffusionPipeline,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DPMSolverMultistepScheduler,
    LEditsPPPipelineStableDiffusion,
    LEditsPPPipelineStableDiffusionXL,
    SemanticStableDiffusionPipeline,
    StableDiffusionAttendAndExcitePipeline,
    StableDiffusionDiffEditPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionGLIGENTextImagePipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionModelEditingPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionParadigmsPipeline,
    StableDiffusionPipelineSafe,
    StableDiffusionPix2PixZeroPipeline,
    StableDiffusionSAGPipeline,
)
from diffusers.pipelines.deprecated.stable_diffusion_variants.pipeline_stable_diffusion_inpaint_legacy import (
    StableDiffusionInpaintPipelineLegacy,
)
from diffusers.pipelines.stable_diffusion import CLIPImageProjection
from transformers import CLIPProcessor

from .unet_parts import (
    BETAS,
    PROMPTS,
    SIZE,
    TEXT,
    case,
    clip_processor,
    clip_vision,
    ddim,
    half_mask,
    kl_vae,
    picture,
    pil,
    sd_parts,
    short_tokenizer,
    stirred,
    unet,
    xl_parts,
)

PLAIN = {**TEXT, **SIZE}


def wide_parts():
    """The windows' size is in latents 8 times smaller than the picture, whatever the autoencoder."""
    return sd_parts(ddim(), vae=kl_vae(widths=(8, 8, 8, 8)))


case(
    "StableDiffusionPanoramaPipeline",
    StableDiffusionPanoramaPipeline,
    wide_parts,
    {**TEXT, "height": 64, "width": 576},
)
case("StableDiffusionSAGPipeline", StableDiffusionSAGPipeline, lambda: sd_parts(ddim()), {**PLAIN, "sag_scale": 0.75})
case(
    "StableDiffusionAttendAndExcitePipeline",
    StableDiffusionAttendAndExcitePipeline,
    sd_parts,
    {**PLAIN, "token_indices": [1, 2], "attn_res": (8, 8), "max_iter_to_alter": 3},
    batch=None,
)
case(
    "SemanticStableDiffusionPipeline",
    SemanticStableDiffusionPipeline,
    sd_parts,
    {**PLAIN, "editing_prompt": ["blue", "dog"], "edit_warmup_steps": 1, "reverse_editing_direction": [False, True]},
)
case(
    "StableDiffusionPipelineSafe",
    StableDiffusionPipelineSafe,
    lambda: sd_parts(ddim()),
    {**PLAIN, "sld_warmup_steps": 1, "output_type": "np"},
)
case(
    "StableDiffusionParadigmsPipeline",
    StableDiffusionParadigmsPipeline,
    lambda: sd_parts(DDIMParallelScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)),
    {**PLAIN, "parallel": 4, "tolerance": 0.1},
)


def edited(**parts):
    pipe = StableDiffusionModelEditingPipeline(**parts, with_augs=["A photo of "])
    pipe.edit_model("a cat", "a blue cat")
    return pipe


case("StableDiffusionModelEditingPipeline", edited, lambda: sd_parts(ddim()), PLAIN)
case(
    "StableDiffusionLDM3DPipeline",
    StableDiffusionLDM3DPipeline,
    lambda: sd_parts(vae=kl_vae(in_channels=6, out_channels=6), image_encoder=None),
    {**PLAIN, "output_type": "np"},
)


def gated(kind: str):
    """The boxes' attention has gates that start at zero."""
    made = stirred(unet(110, attention_type=kind), 110)
    for name, gate in made.named_parameters():
        if "alpha_" in name:
            gate.data.fill_(0.5)
    return made


BOXES = {"gligen_phrases": ["cat", "dog"], "gligen_boxes": [[0.1, 0.1, 0.5, 0.9], [0.6, 0.2, 0.9, 0.8]]}
case(
    "StableDiffusionGLIGENPipeline",
    StableDiffusionGLIGENPipeline,
    lambda: sd_parts(denoiser=gated("gated")),
    {**PLAIN, **BOXES, "gligen_scheduled_sampling_beta": 0.5},
    batch=None,
)


def layout_parts():
    torch.manual_seed(111)
    project = CLIPImageProjection(16).eval()
    parts = sd_parts(denoiser=gated("gated-text-image"), image_project=project, image_encoder=clip_vision())
    return {**parts, "processor": CLIPProcessor(clip_processor(), short_tokenizer())}


case(
    "StableDiffusionGLIGENTextImagePipeline",
    StableDiffusionGLIGENTextImagePipeline,
    layout_parts,
    {**PLAIN, **BOXES, "gligen_images": pil(picture(count=2)), "gligen_scheduled_sampling_beta": 0.5},
    batch=None,
)
case(
    "CycleDiffusionPipeline",
    CycleDiffusionPipeline,
    lambda: sd_parts(ddim()),
    {
        "prompt": PROMPTS[1],
        "source_prompt": PROMPTS[0],
        "image": picture(),
        "eta": 0.1,
        "strength": 0.8,
        "guidance_scale": 3.0,
        "output_type": "latent",
    },
    batch=None,
)
case(
    "StableDiffusionInpaintPipelineLegacy",
    StableDiffusionInpaintPipelineLegacy,
    sd_parts,
    {**TEXT, "image": pil(picture(64, 64))[0], "mask_image": pil(picture(64, 64, seed=112))[0], "output_type": "np"},
    batch=None,
)


def inverse_parts():
    return sd_parts(ddim(), inverse_scheduler=DDIMInverseScheduler(**BETAS, clip_sample=False, steps_offset=1))


case(
    "StableDiffusionDiffEditPipeline",
    StableDiffusionDiffEditPipeline,
    inverse_parts,
    # One picture for every step, so that six it must be.
    {
        **TEXT,
        "mask_image": half_mask(8, 8)[:, 0],
        "image_latents": picture(8, 8, channels=4, count=6)[None],
        "inpaint_strength": 1.0,
    },
    batch=None,
)


def zero_parts():
    return {**inverse_parts(), "caption_generator": None, "caption_processor": None}


case(
    "StableDiffusionPix2PixZeroPipeline",
    StableDiffusionPix2PixZeroPipeline,
    zero_parts,
    {
        **PLAIN,
        "source_embeds": picture(16, 16, channels=2, seed=113)[0],
        "target_embeds": picture(16, 16, channels=2, seed=114)[0],
    },
    batch=None,
)


def inverted(pipeline):
    """The pipeline after the steps from the picture to its noise; their number holds for the way back."""

    def make(**parts):
        pipe = pipeline(**parts)
        pipe.set_progress_bar_config(disable=True)
        with torch.no_grad():
            pipe.invert(
                image=pil(picture(32, 32))[0],
                source_prompt=PROMPTS[0],
                num_inversion_steps=6,
                skip=0.2,
                generator=torch.Generator().manual_seed(115),
            )
        return pipe

    return make


def sde():
    return DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++", solver_order=2)


EDIT = {"editing_prompt": ["blue", "dog"], "edit_warmup_steps": 1, "use_intersect_mask": False, "output_type": "latent"}
for pipeline, make in (
    (LEditsPPPipelineStableDiffusion, lambda: sd_parts(sde())),
    (LEditsPPPipelineStableDiffusionXL, lambda: xl_parts(sde())),
):
    case(
        pipeline.__name__,
        inverted(pipeline),
        make,
        EDIT,
        guidance=None,
        batch=None,
        steps=None,
        takes_generator=False,
    )
