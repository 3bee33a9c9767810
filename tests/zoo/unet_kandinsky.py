"""Kandinsky 2.1, 2.2 and 3: a prior makes a picture's embedding from the text, a U-Net the picture from it."""

from __future__ import annotations

import torch
from diffusers import (
    DDPMScheduler,
    Kandinsky3Img2ImgPipeline,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    KandinskyCombinedPipeline,
    KandinskyImg2ImgCombinedPipeline,
    KandinskyImg2ImgPipeline,
    KandinskyInpaintCombinedPipeline,
    KandinskyInpaintPipeline,
    KandinskyPipeline,
    KandinskyPriorPipeline,
    KandinskyV22CombinedPipeline,
    KandinskyV22ControlnetImg2ImgPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgCombinedPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintCombinedPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorEmb2EmbPipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    VQModel,
)
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

from .unet_parts import (
    BATCH,
    PROMPTS,
    SIZE,
    case,
    clip_processor,
    clip_text,
    clip_vision,
    ddim,
    half_mask,
    loud,
    picture,
    pil,
    short_tokenizer,
    stirred,
    t5,
    unet,
)

TEXT = {"prompt": PROMPTS[0], "negative_prompt": "red", "guidance_scale": 4.0}
LINEAR = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
IMAGE = {"image": picture(), "strength": 0.8}
IMAGES = {"image": picture(count=2)}
MASK = {"image": picture(), "mask_image": half_mask()}
PROMPT_BATCH = {"prompt": PROMPTS, "negative_prompt": ["red", "blue"]}


def embeddings(count: int = 1) -> dict:
    """What a prior would have made."""
    random = torch.Generator().manual_seed(90)
    made = torch.randn(2, 2, 16, generator=random)
    return {"image_embeds": made[0, :count], "negative_image_embeds": made[1, :count]}


def movq(seed: int = 91) -> VQModel:
    """Latents of its decoder go into the norms too, as these models have it."""
    torch.manual_seed(seed)
    return VQModel(
        block_out_channels=(32, 32),  # its attention has 32 groups
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    ).eval()


def denoiser(kind: str, channels: int = 4, hidden: str = "image_proj"):
    """Twice the channels come out: noise and variance."""
    return unet(
        92,
        channels=channels,
        out_channels=8,
        addition_embed_type=kind,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        encoder_hid_dim=16,
        encoder_hid_dim_type=hidden,
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=4,
    )


def mclip() -> MultilingualCLIP:
    torch.manual_seed(93)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = MCLIPConfig(numDims=16, transformerDimensions=16, vocab_size=64, **sizes)
    return MultilingualCLIP(config).eval()


def first_parts(channels: int = 4):
    return {
        "text_encoder": mclip(),
        "tokenizer": short_tokenizer(77),
        "unet": denoiser("text_image", channels, "text_image_proj"),
        "scheduler": ddim(**LINEAR),
        "movq": movq(),
    }


def second_parts(kind: str = "image", channels: int = 4):
    scheduler = DDPMScheduler(**LINEAR, variance_type="learned_range")
    return {"unet": denoiser(kind, channels), "scheduler": scheduler, "movq": movq()}


def prior_parts():
    torch.manual_seed(94)
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=16, num_embeddings=16
    )
    prior.clip_std.data.fill_(1.0)  # zeros until they are read from weights
    return {
        "prior": stirred(prior, 94),
        "image_encoder": clip_vision(),
        "text_encoder": clip_text(95, projected=True),
        "tokenizer": short_tokenizer(),
        "scheduler": UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0, num_train_timesteps=1000
        ),
        "image_processor": clip_processor(),
    }


def combined(parts):
    return {**parts, **{f"prior_{name}": part for name, part in prior_parts().items()}}


for pipeline in (KandinskyPriorPipeline, KandinskyV22PriorPipeline):
    case(
        pipeline.__name__,
        pipeline,
        prior_parts,
        {**TEXT, "output_type": "pt"},
        batch=PROMPT_BATCH,
        denoisers=("prior",),
    )
case(
    "KandinskyV22PriorEmb2EmbPipeline",
    KandinskyV22PriorEmb2EmbPipeline,
    prior_parts,
    {**TEXT, "image": embeddings()["image_embeds"], "strength": 0.8, "output_type": "pt"},
    batch=None,
    denoisers=("prior",),
)

FIRST = {**TEXT, **SIZE, "output_type": "pt"}
SECOND = {**SIZE, "guidance_scale": 4.0, "output_type": "latent"}
BOTH = {**PROMPT_BATCH, **embeddings(2)}
case("KandinskyPipeline", KandinskyPipeline, first_parts, {**FIRST, **embeddings()}, batch=BOTH)
case(
    "KandinskyImg2ImgPipeline",
    KandinskyImg2ImgPipeline,
    first_parts,
    {**FIRST, **embeddings(), **IMAGE},
    batch={**BOTH, **IMAGES},
)
case(
    "KandinskyInpaintPipeline",
    KandinskyInpaintPipeline,
    lambda: first_parts(9),
    {**FIRST, **embeddings(), **MASK},
    batch=None,
)
case("KandinskyV22Pipeline", KandinskyV22Pipeline, second_parts, {**SECOND, **embeddings()}, batch=embeddings(2))
case(
    "KandinskyV22Img2ImgPipeline",
    KandinskyV22Img2ImgPipeline,
    second_parts,
    {**SECOND, **embeddings(), **IMAGE},
    batch={**embeddings(2), **IMAGES},
)
case(
    "KandinskyV22InpaintPipeline",
    KandinskyV22InpaintPipeline,
    lambda: second_parts(channels=9),
    {**SECOND, **embeddings(), **MASK},
    batch=None,
)
#: It is made 8 times smaller, as the released decoder is, whatever this one is.
HINT = {"hint": picture(64, 64, seed=96), "output_type": "pt"}
case(
    "KandinskyV22ControlnetPipeline",
    KandinskyV22ControlnetPipeline,
    lambda: second_parts("image_hint", 8),
    {**SECOND, **embeddings(), **HINT},
    batch={**embeddings(2), "hint": picture(64, 64, seed=96, count=2)},
)
case(
    "KandinskyV22ControlnetImg2ImgPipeline",
    KandinskyV22ControlnetImg2ImgPipeline,
    lambda: second_parts("image_hint", 8),
    {**SECOND, **embeddings(), **IMAGE, **HINT},
    batch={**embeddings(2), **IMAGES, "hint": picture(64, 64, seed=96, count=2)},
)

TOGETHER = {**FIRST, "prior_guidance_scale": 4.0, "prior_num_inference_steps": 6}
NEITHER = {"guidance_scale": 1.0, "prior_guidance_scale": 1.0}
SHOWN = {"image": pil(picture())[0], "strength": 0.8}
PAINTED = {"image": pil(picture())[0], "mask_image": half_mask().numpy()[0, 0]}
for pipeline, make, call in (
    (KandinskyCombinedPipeline, first_parts, {}),
    (KandinskyImg2ImgCombinedPipeline, first_parts, SHOWN),
    (KandinskyInpaintCombinedPipeline, lambda: first_parts(9), PAINTED),
    (KandinskyV22CombinedPipeline, second_parts, {"output_type": "latent"}),
    (KandinskyV22Img2ImgCombinedPipeline, second_parts, {**SHOWN, "output_type": "latent"}),
    (KandinskyV22InpaintCombinedPipeline, lambda: second_parts(channels=9), {**PAINTED, "output_type": "latent"}),
):
    case(
        pipeline.__name__,
        pipeline,
        lambda make=make: combined(make()),
        {**TOGETHER, **call},
        guidance=NEITHER,
        batch=PROMPT_BATCH if "image" not in call else None,
        denoisers=("prior_prior", "unet"),
    )


def third_parts():
    """No prior: a large T5's text right into the U-Net."""
    torch.manual_seed(97)
    made = Kandinsky3UNet(
        time_embedding_dim=8,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(8, 16),
        cross_attention_dim=8,
        encoder_hid_dim=16,
    )
    return {
        "tokenizer": short_tokenizer(128),
        "text_encoder": t5(98),
        "unet": loud(stirred(made, 97)),
        "scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True, steps_offset=1),
        "movq": movq(),
    }


case("Kandinsky3Pipeline", Kandinsky3Pipeline, third_parts, {**TEXT, **SIZE, "output_type": "latent"}, batch=BATCH)
case(
    "Kandinsky3Img2ImgPipeline",
    Kandinsky3Img2ImgPipeline,
    third_parts,
    {**TEXT, **IMAGE, "output_type": "latent"},
    batch={**BATCH, **IMAGES},
)
