"""U-Nets without text: pictures and sounds from noise alone, a consistency model, and latent diffusion's first."""

from __future__ import annotations

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DanceDiffusionPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    IPNDMScheduler,
    KarrasVePipeline,
    LDMPipeline,
    LDMSuperResolutionPipeline,
    LDMTextToImagePipeline,
    PNDMPipeline,
    PNDMScheduler,
    RePaintPipeline,
    RePaintScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet1DModel,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler

from .unet_parts import PROMPTS, case, ddim, half_mask, kl_vae, loud, picture, short_tokenizer, stirred, unet


def pixel_unet(seed: int = 100, *, channels: int = 3, **config) -> UNet2DModel:
    """Attention at the lower of two levels."""
    torch.manual_seed(seed)
    usual = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return loud(stirred(UNet2DModel(**{**usual, **config}), seed))


def alone(name, pipeline, scheduler, denoiser=pixel_unet, two=None, **call):
    """A case without any input but the noise."""
    case(
        name,
        pipeline,
        lambda: {"unet": denoiser(), "scheduler": scheduler()},
        {"output_type": "np", **call},
        guidance=None,
        batch={"batch_size": 2, **(two or {})},
    )


alone("DDPMPipeline", DDPMPipeline, DDPMScheduler)
alone("DDIMPipeline", DDIMPipeline, DDIMScheduler)
alone("DDIMPipeline-eta", DDIMPipeline, DDIMScheduler, eta=0.5)
alone("PNDMPipeline", PNDMPipeline, PNDMScheduler)
alone("ScoreSdeVePipeline", ScoreSdeVePipeline, lambda: ScoreSdeVeScheduler(snr=0.15))
alone("KarrasVePipeline", KarrasVePipeline, KarrasVeScheduler)


def consistency_unet() -> UNet2DModel:
    """Of classes, and with the time as a scale of its norms."""
    return pixel_unet(
        101,
        num_class_embeds=4,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=4,
        downsample_type="resnet",
        upsample_type="resnet",
    )


alone(
    "ConsistencyModelPipeline",
    ConsistencyModelPipeline,
    lambda: CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0),
    consistency_unet,
    {"class_labels": [1, 2]},
    class_labels=1,
)
case(
    "RePaintPipeline",
    RePaintPipeline,
    lambda: {"unet": pixel_unet(), "scheduler": RePaintScheduler()},
    {
        "image": picture(8, 8),
        "mask_image": half_mask(8, 8),
        "jump_length": 2,
        "jump_n_sample": 2,
        "eta": 0.5,
        "output_type": "np",
    },
    guidance=None,
    batch={"image": picture(8, 8, count=2), "mask_image": half_mask(8, 8, count=2)},
)


def sound_unet() -> UNet1DModel:
    torch.manual_seed(102)
    made = UNet1DModel(
        sample_size=64,
        sample_rate=1000,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,
        block_out_channels=(32, 32, 32),  # an attention head has 32 channels
        time_embedding_type="fourier",
        use_timestep_embedding=False,
        flip_sin_to_cos=True,
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    )
    return stirred(made, 102)


case(
    "DanceDiffusionPipeline",
    DanceDiffusionPipeline,
    lambda: {"unet": sound_unet(), "scheduler": IPNDMScheduler()},
    {},
    guidance=None,
    batch={"batch_size": 2},
)


def vq(seed: int = 103, **config) -> VQModel:
    torch.manual_seed(seed)
    return VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
        **{"num_vq_embeddings": 12, **config},
    ).eval()


case(
    "LDMPipeline",
    LDMPipeline,
    lambda: {"vqvae": vq(), "unet": pixel_unet(), "scheduler": ddim()},
    {"output_type": "np"},
    guidance=None,
    batch={"batch_size": 2},
)
case(
    "LDMSuperResolutionPipeline",
    LDMSuperResolutionPipeline,
    lambda: {"vqvae": vq(), "unet": pixel_unet(channels=6), "scheduler": ddim()},
    {"image": picture(8, 8), "output_type": "pt"},
    guidance=None,
    batch={"image": picture(8, 8, count=2)},
)


def bert() -> LDMBertModel:
    torch.manual_seed(104)
    sizes = {"encoder_layers": 2, "encoder_ffn_dim": 32, "encoder_attention_heads": 2, "head_dim": 8, "d_model": 16}
    return LDMBertModel(LDMBertConfig(vocab_size=64, **sizes)).eval()


case(
    "LDMTextToImagePipeline",
    LDMTextToImagePipeline,
    lambda: {
        "vqvae": kl_vae(),
        "bert": bert(),
        "tokenizer": short_tokenizer(77),
        "unet": unet(),
        "scheduler": ddim(),
    },
    {"prompt": PROMPTS[0], "height": 64, "width": 64, "guidance_scale": 5.0, "output_type": "pt"},
    batch={"prompt": PROMPTS},
)
