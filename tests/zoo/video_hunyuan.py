"""HunyuanVideo, its image-to-video and FramePack kinds, and HunyuanVideo 1.5."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import (
    ByT5Tokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from . import image_parts as made
from . import video_parts as parts
from .base import Case

#: Distilled: one forward a step, told of the guidance; ``true_cfg_scale`` adds a second with the negative prompt.
CALL = {
    **parts.TEXT,
    **parts.SIZE,
    "guidance_scale": 6.0,
    "true_cfg_scale": 3.0,
    "max_sequence_length": 16,
    "prompt_template": {"template": "{}", "crop_start": 0},
}
OFF = {"true_cfg_scale": 1.0}
#: A template of as many words as are cut off again; each picture is four tokens.
SEEING = {
    "template": "<|start_header_id|> a <|end_header_id|> <image> <|eot_id|> <|start_header_id|> a <|end_header_id|> "
    "{} <|eot_id|> <|start_header_id|> a <|end_header_id|>",
    "crop_start": 8,
    "image_emb_start": 3,
    "image_emb_end": 7,
    "image_emb_len": 4,
}
SIZES = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 3,
    "num_single_layers": 3,
    "num_refiner_layers": 2,
    "patch_size": 1,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 16,
    "pooled_projection_dim": 32,
    "rope_axes_dim": (4, 6, 6),
}


def model(kind=HunyuanVideoTransformer3DModel, **config):
    torch.manual_seed(0)
    return made.stirred(kind(**{**SIZES, **config}))


def vae() -> AutoencoderKLHunyuanVideo:
    torch.manual_seed(1)
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


def llama() -> LlamaModel:
    torch.manual_seed(2)
    return LlamaModel(LlamaConfig(**made.decoder_sizes(16, 4))).eval()


def llava() -> LlavaForConditionalGeneration:
    """A language model that sees pictures as four tokens each."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    seen = CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=16)
    said = LlamaConfig(**made.decoder_sizes(16, 4))
    config = LlavaConfig(vision_config=seen, text_config=said, image_token_index=10, pad_token_id=0)
    return LlavaForConditionalGeneration(config).eval()


def seeing_tokenizer():
    tokenizer = made.tokenizer()
    words = ["<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    return tokenizer


def siglip(width: int = 16) -> dict:
    torch.manual_seed(4)
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    encoder = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=16, patch_size=8)).eval()
    return {"image_encoder": encoder, "feature_extractor": SiglipImageProcessor(size={"height": 16, "width": 16})}


def components(**others) -> dict:
    return {
        "transformer": model(),
        "vae": vae(),
        "scheduler": made.flow(7.0),
        "text_encoder": llama(),
        "tokenizer": made.tokenizer(),
        "text_encoder_2": made.clip_text(3),
        "tokenizer_2": made.tokenizer(),
        **others,
    }


def seeing_components(**config) -> dict:
    seeing = {"text_encoder": llava(), "tokenizer": seeing_tokenizer(), "image_processor": parts.clip_processor()}
    return components(transformer=model(**config), **seeing)


def framepack() -> dict:
    transformer = model(
        HunyuanVideoFramepackTransformer3DModel,
        patch_size=2,
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    scheduler = made.flow(1.0, use_dynamic_shifting=True, time_shift_type="exponential")
    return components(transformer=transformer, scheduler=scheduler, **siglip())


def newer_model(task: str, layers: int = 4, refiners: int = 2) -> HunyuanVideo15Transformer3DModel:
    """Takes latents, latents of a picture and a mask."""
    torch.manual_seed(0)
    model = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=layers,
        num_refiner_layers=refiners,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        text_embed_2_dim=32,
        image_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
        target_size=16,
        task_type=task,
    )
    return made.stirred(model)


def newer_vae() -> AutoencoderKLHunyuanVideo15:
    torch.manual_seed(1)
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    ).eval()


def newer(task: str, scale: float = 6.0, **others) -> dict:
    """Two texts: what is said, and what is to be written in the video ("in quotation marks")."""
    torch.manual_seed(2)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    text = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**made.decoder_sizes(16, 4), rope_parameters=rope)).eval()
    torch.manual_seed(3)
    sizes = {"vocab_size": 384, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return {
        "transformer": newer_model(task),
        "vae": newer_vae(),
        "scheduler": made.flow(7.0),
        "text_encoder": text,
        "tokenizer": made.tokenizer(template=made.LAST),
        "text_encoder_2": T5EncoderModel(T5Config(**sizes)).eval(),
        "tokenizer_2": ByT5Tokenizer(),
        "guider": ClassifierFreeGuidance(guidance_scale=scale),
        **others,
    }


def shortened(pipe):
    """The pipeline with as few tokens as the small models need; it crops the template's words itself."""
    pipe.prompt_template_encode_start_idx = 0
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 8, 16, 4
    return made.quiet(pipe)


NEWER = {**parts.TEXT, "prompt": 'a red cat "dog"', "num_frames": 9}
NEWER_SIZED = {**NEWER, "height": 16, "width": 16}

Case(
    "HunyuanVideoPipeline",
    build=lambda: made.quiet(HunyuanVideoPipeline(**components())),
    call=lambda: CALL,
    guidance=OFF,
    batch=parts.BATCH,
)
Case(
    "HunyuanVideoPipeline-embedded",  # as it is released: guidance is only told to the model
    build=lambda: made.quiet(HunyuanVideoPipeline(**components())),
    call=lambda: {**CALL, "true_cfg_scale": 1.0},
    batch=parts.BATCH,
)
Case(
    "HunyuanVideoImageToVideoPipeline",  # the first model of 33 channels: latents, a picture's latents and a mask
    build=lambda: made.quiet(
        HunyuanVideoImageToVideoPipeline(
            **seeing_components(in_channels=9, image_condition_type="latent_concat", guidance_embeds=False)
        )
    ),
    call=lambda: {**CALL, "image": made.picture(), "prompt_template": SEEING},
    guidance=OFF,
)
Case(
    "HunyuanVideoImageToVideoPipeline-token_replace",  # the second: the first frame is the picture at every step
    build=lambda: made.quiet(
        HunyuanVideoImageToVideoPipeline(**seeing_components(image_condition_type="token_replace"))
    ),
    call=lambda: {**CALL, "image": made.picture(), "prompt_template": SEEING},
    guidance=OFF,
)
Case(
    "HunyuanSkyreelsImageToVideoPipeline",
    build=lambda: made.quiet(
        HunyuanSkyreelsImageToVideoPipeline(**components(transformer=model(in_channels=8, guidance_embeds=True)))
    ),
    call=lambda: {**CALL, "image": made.picture(), "true_cfg_scale": 6.0, "guidance_scale": 1.0},
    guidance=OFF,
    batch={**parts.BATCH, "image": [made.picture(), made.picture(seed=17)]},
)
Case(
    "HunyuanVideoFramepackPipeline",  # one section
    build=lambda: made.quiet(HunyuanVideoFramepackPipeline(**framepack())),
    call=lambda: {**CALL, "image": made.picture(), "latent_window_size": 3},
    guidance=OFF,
)
Case(
    "HunyuanVideoFramepackPipeline-sections",  # two sections, the end first
    build=lambda: made.quiet(HunyuanVideoFramepackPipeline(**framepack())),
    call=lambda: {**CALL, "image": made.picture(), "latent_window_size": 3, "num_frames": 17},
    guidance=OFF,
)
Case(
    "HunyuanVideoFramepackPipeline-vanilla",  # two sections, the beginning first
    build=lambda: made.quiet(HunyuanVideoFramepackPipeline(**framepack())),
    call=lambda: {
        **CALL,
        "image": made.picture(),
        "latent_window_size": 3,
        "num_frames": 17,
        "sampling_type": "vanilla",
        "true_cfg_scale": 1.0,
    },
)
Case(
    "HunyuanVideo15Pipeline",
    build=lambda: shortened(HunyuanVideo15Pipeline(**newer("t2v"))),
    call=lambda: NEWER_SIZED,
    batch=parts.BATCH,
)
Case(
    "HunyuanVideo15Pipeline-no_guidance",  # its guider is a component, no argument turns it off
    build=lambda: shortened(HunyuanVideo15Pipeline(**newer("t2v", 1.0))),
    call=lambda: NEWER_SIZED,
    batch=parts.BATCH,
)
Case(
    "HunyuanVideo15ImageToVideoPipeline",
    build=lambda: shortened(HunyuanVideo15ImageToVideoPipeline(**newer("i2v", **siglip()))),
    call=lambda: {**NEWER, "image": made.picture(16, 16)},
)
