"""What is left of diffusers' older pipelines with a U-Net, or a denoiser that takes its place in one of them."""

from __future__ import annotations

import torch
from diffusers import (
    AltDiffusionImg2ImgPipeline,
    AltDiffusionPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PaintByExamplePipeline,
    UniDiffuserModel,
    UniDiffuserPipeline,
    UniDiffuserTextDecoder,
    VersatileDiffusionImageVariationPipeline,
    VersatileDiffusionTextToImagePipeline,
)
from diffusers.models.transformers.t5_film_transformer import T5FilmDecoder
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from diffusers.pipelines.deprecated.audio_diffusion.pipeline_audio_diffusion import (
    AudioDiffusionPipeline,  # hidden where librosa is missing
)
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from diffusers.pipelines.deprecated.spectrogram_diffusion.pipeline_spectrogram_diffusion import (
    SpectrogramDiffusionPipeline,
)
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel

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
    half_mask,
    kl_vae,
    picture,
    pil,
    sd_parts,
    short_tokenizer,
    stirred,
    unet,
)
from .unet_pixel import pixel_unet


def example_parts():
    torch.manual_seed(140)
    encoder = PaintByExampleImageEncoder(clip_vision(num_hidden_layers=4).config, proj_size=16).eval()
    parts = sd_parts(denoiser=unet(channels=9), image_encoder=encoder, feature_extractor=clip_processor())
    del parts["text_encoder"], parts["tokenizer"]
    return parts


case(
    "PaintByExamplePipeline",
    PaintByExamplePipeline,
    example_parts,
    {
        **SIZE,
        "example_image": picture(seed=141),
        "image": 2 * picture() - 1,
        "mask_image": half_mask(),
        "guidance_scale": 5.0,
        "output_type": "latent",
    },
    batch=None,
)


def roberta() -> RobertaSeriesModelWithTransformation:
    torch.manual_seed(142)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = RobertaSeriesConfig(**sizes, vocab_size=64, project_dim=16, pad_token_id=0, bos_token_id=2, eos_token_id=1)
    return RobertaSeriesModelWithTransformation(config).eval()


def alt_parts():
    return sd_parts(text_encoder=roberta())


case("AltDiffusionPipeline", AltDiffusionPipeline, alt_parts, {**TEXT, **SIZE})
case(
    "AltDiffusionImg2ImgPipeline",
    AltDiffusionImg2ImgPipeline,
    alt_parts,
    {**TEXT, "image": picture(), "strength": 0.8},
    batch={**BATCH, "image": picture(count=2)},
)


def uni_parts():
    """One transformer in a U-Net's shape denoises a picture, its embedding and a text, each at its own time."""
    torch.manual_seed(143)
    denoiser = UniDiffuserModel(
        text_dim=16,
        clip_img_dim=16,
        num_text_tokens=16,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu",
        num_embeds_ada_norm=1000,
        norm_type="layer_norm",
        use_patch_pos_embed=True,
        ff_final_dropout=True,
    )
    torch.manual_seed(144)
    decoder = UniDiffuserTextDecoder(
        prefix_length=16, prefix_inner_dim=16, vocab_size=64, n_positions=128, n_embd=16, n_layer=2, n_head=2
    )
    return {
        "vae": kl_vae(),
        "text_encoder": clip_text(max_position_embeddings=16),
        "image_encoder": clip_vision(),
        "clip_image_processor": clip_processor(),
        "clip_tokenizer": short_tokenizer(),
        "text_decoder": decoder.eval(),
        "text_tokenizer": short_tokenizer(),
        "unet": stirred(denoiser, 143),
        "scheduler": DPMSolverMultistepScheduler(**BETAS, solver_order=3),
    }


case(
    "UniDiffuserPipeline",
    UniDiffuserPipeline,
    uni_parts,
    {"prompt": PROMPTS[0], **SIZE, "guidance_scale": 5.0, "output_type": "latent"},
    batch={"prompt": PROMPTS},
)
case(
    "UniDiffuserPipeline-joint",
    UniDiffuserPipeline,
    uni_parts,
    {**SIZE, "guidance_scale": 5.0, "output_type": "latent"},
    batch=None,
)


def flat_unet(seed: int = 145) -> UNetFlatConditionModel:
    """Of a text's vectors; its attention is what the pipelines put into the picture's U-Net."""
    torch.manual_seed(seed)
    return UNetFlatConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockFlat", "DownBlockFlat"),
        up_block_types=("UpBlockFlat", "CrossAttnUpBlockFlat"),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
    ).eval()


def versatile_parts(*names: str):
    every = {
        "tokenizer": short_tokenizer(),
        "image_feature_extractor": clip_processor(),
        "text_encoder": clip_text(95, projected=True),
        "image_encoder": clip_vision(),
        "image_unet": unet(146),
        "text_unet": flat_unet(),
        "vae": kl_vae(),
        "scheduler": ddim(),
    }
    return {name: every[name] for name in names}


WITH_TEXT = ("tokenizer", "text_encoder", "image_unet", "text_unet", "vae", "scheduler")
WITH_PICTURE = ("image_feature_extractor", "image_encoder", "image_unet", "vae", "scheduler")
case(
    "VersatileDiffusionTextToImagePipeline",
    VersatileDiffusionTextToImagePipeline,
    lambda: versatile_parts(*WITH_TEXT),
    {**TEXT, **SIZE},
    denoisers=("image_unet",),
)
SEEN = {**SIZE, "image": pil(picture())[0], "guidance_scale": 5.0, "output_type": "latent"}
case(
    "VersatileDiffusionImageVariationPipeline",
    VersatileDiffusionImageVariationPipeline,
    lambda: versatile_parts(*WITH_PICTURE),
    SEEN,
    batch={"image": pil(picture(count=2))},
    denoisers=("image_unet",),
)


class Mel:
    """In the place of diffusers' own, which needs librosa: the spectrogram's rows as a sound."""

    def get_sample_rate(self) -> int:
        return 8

    def image_to_audio(self, image):
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float().numpy()


case(
    "AudioDiffusionPipeline",
    AudioDiffusionPipeline,
    lambda: {
        "vqvae": None,
        "unet": pixel_unet(147, channels=1, out_channels=1),
        "mel": Mel(),
        "scheduler": DDPMScheduler(),
    },
    {},
    guidance=None,
    batch={"batch_size": 2},
    steps="steps",
)


class Encoder(torch.nn.Module):
    """In the place of diffusers' own two, which need a method that its models no longer have."""

    device, dtype = torch.device("cpu"), torch.float32  # the pipeline asks its parts

    def __init__(self, seed: int, layer: type[torch.nn.Module], size: int):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = layer(size, 16)

    def forward(self, *, encoder_inputs_mask, encoder_input_tokens=None, encoder_inputs=None):
        given = encoder_input_tokens if encoder_inputs is None else encoder_inputs
        return self.layer(given), encoder_inputs_mask


def spectrogram_parts():
    """Notes to a spectrogram, one stretch after the other, each seeing the one before."""
    torch.manual_seed(149)
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32, "dropout_rate": 0.1}
    decoder = T5FilmDecoder(input_dims=128, targets_length=256, max_decoder_noise_time=2000.0, **sizes)
    return {
        "notes_encoder": Encoder(147, torch.nn.Embedding, 64).eval(),
        "continuous_encoder": Encoder(148, torch.nn.Linear, 128).eval(),
        "decoder": stirred(decoder, 149),
        "scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "melgan": None,
    }


case(
    "SpectrogramDiffusionPipeline",
    SpectrogramDiffusionPipeline,
    spectrogram_parts,
    {"input_tokens": [[3, 4, 5, 6] * 8, [7, 8] * 16], "output_type": "mel"},
    guidance=None,
    batch=None,
    denoisers=("decoder",),
)
