"""Pictures that steer a U-Net: ControlNet, its small kin XS and the T2I adapters, for Stable Diffusion 1 and XL."""

from __future__ import annotations

import torch
from diffusers import (
    ControlNetModel,
    ControlNetXSAdapter,
    MultiAdapter,
    MultiControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPAGInpaintPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionControlNetXSPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetXSPipeline,
    T2IAdapter,
    UniPCMultistepScheduler,
)

from .unet_parts import (
    BATCH,
    BETAS,
    SIZE,
    TEXT,
    case,
    ddim,
    half_mask,
    picture,
    sd_parts,
    stirred,
    unet,
    xl_parts,
    xl_unet,
)

HINT = picture(seed=50)
HINTS = picture(seed=50, count=2)
PICTURE = {"image": picture(), "control_image": HINT, "strength": 0.8}
PICTURES = {**BATCH, "image": picture(count=2), "control_image": HINTS}
MASKED = {**SIZE, **PICTURE, "mask_image": half_mask()}
BOTH_MASKED = {**PICTURES, "mask_image": half_mask(count=2)}
PAG = {"pag_scale": 2.0}
NO_PAG = {"guidance_scale": 1.0, "pag_scale": 0.0}


def controlnet(seed: int = 51, **config):
    """A copy of the U-Net's lower half, its outputs no longer zero."""
    torch.manual_seed(seed)
    usual = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "conditioning_embedding_out_channels": (8, 16),
    }
    return stirred(ControlNetModel(**{**usual, **config}), seed)


def parts(**more):
    return sd_parts(UniPCMultistepScheduler(**BETAS), controlnet=controlnet(), **more)


case(
    "StableDiffusionControlNetPipeline",
    StableDiffusionControlNetPipeline,
    parts,
    {**TEXT, "image": HINT},
    batch={**BATCH, "image": HINTS},
)
case(
    "StableDiffusionControlNetPipeline-guess-and-end",
    StableDiffusionControlNetPipeline,
    parts,
    {**TEXT, "image": HINT, "guess_mode": True, "control_guidance_end": 0.5},
    batch={**BATCH, "image": HINTS},
)
case(
    "StableDiffusionControlNetPipeline-two",
    StableDiffusionControlNetPipeline,
    lambda: {**parts(), "controlnet": MultiControlNetModel([controlnet(), controlnet(52)]).eval()},
    {**TEXT, "image": [HINT, picture(seed=53)], "controlnet_conditioning_scale": [1.0, 0.5]},
    batch={**BATCH, "image": [HINTS, picture(seed=53, count=2)]},
)
case(
    "StableDiffusionControlNetImg2ImgPipeline",
    StableDiffusionControlNetImg2ImgPipeline,
    parts,
    {**TEXT, **PICTURE},
    batch=PICTURES,
)
for variant, channels in (("", 4), ("-inpaint-unet", 9)):
    case(
        f"StableDiffusionControlNetInpaintPipeline{variant}",
        StableDiffusionControlNetInpaintPipeline,
        lambda channels=channels: parts(unet=unet(channels=channels)),
        {**TEXT, **MASKED},
        batch=BOTH_MASKED,
    )
case(
    "StableDiffusionControlNetPAGPipeline",
    StableDiffusionControlNetPAGPipeline,
    parts,
    {**TEXT, **PAG, "image": HINT},
    guidance=NO_PAG,
    batch={**BATCH, "image": HINTS},
)
case(
    "StableDiffusionControlNetPAGInpaintPipeline",
    StableDiffusionControlNetPAGInpaintPipeline,
    parts,
    {**TEXT, **PAG, **MASKED},
    guidance=NO_PAG,
    batch=BOTH_MASKED,
)


def small_parts():
    """The XS adapter and the U-Net are woven into one model when the pipeline is made."""
    base = unet(layers_per_block=2, use_linear_projection=True, upcast_attention=False)
    return {**sd_parts(ddim(), base), "controlnet": adapter_for(base, 54)}


def adapter_for(base, seed):
    torch.manual_seed(seed)
    made = ControlNetXSAdapter.from_unet(base, size_ratio=0.5, conditioning_embedding_out_channels=(8, 8))
    return stirred(made, seed)


def small_xl_parts():
    base = xl_unet(layers_per_block=2)
    return xl_parts(denoiser=base, controlnet=adapter_for(base, 55))


for pipeline, make in (
    (StableDiffusionControlNetXSPipeline, small_parts),
    (StableDiffusionXLControlNetXSPipeline, small_xl_parts),
):
    case(pipeline.__name__, pipeline, make, {**TEXT, "image": HINT}, batch={**BATCH, "image": HINTS})


def adapter(seed: int = 56, kind: str = "full_adapter", factor: int = 2) -> T2IAdapter:
    torch.manual_seed(seed)
    return T2IAdapter(3, channels=[8, 16], num_res_blocks=1, downscale_factor=factor, adapter_type=kind).eval()


SEEN = {"image": HINT, **SIZE}
BOTH_SEEN = {**BATCH, "image": HINTS}
case(
    "StableDiffusionAdapterPipeline",
    StableDiffusionAdapterPipeline,
    lambda: sd_parts(adapter=adapter()),
    {**TEXT, **SEEN},
    batch=BOTH_SEEN,
)
case(
    "StableDiffusionAdapterPipeline-two",
    StableDiffusionAdapterPipeline,
    lambda: sd_parts(adapter=MultiAdapter([adapter(), adapter(57)]).eval()),
    {**TEXT, **SEEN, "image": [HINT, picture(seed=53)], "adapter_conditioning_scale": [1.0, 0.5]},
    batch=None,
)
case(
    "StableDiffusionXLAdapterPipeline",
    StableDiffusionXLAdapterPipeline,
    lambda: xl_parts(adapter=adapter(kind="full_adapter_xl", factor=4)),
    {**TEXT, **SEEN, "adapter_conditioning_factor": 0.8},
    batch=BOTH_SEEN,
)
