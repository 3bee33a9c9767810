"""Tiny random pipelines of real classes, built offline in a fraction of a second."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "cat", "dog", "runs", "sleeps"]
WAN_CALL = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 8, "output_type": "latent"}
COG_CALL = {"height": 64, "width": 64, "num_frames": 9, "max_sequence_length": 16, "output_type": "latent"}
QWEN_CALL = {"height": 32, "width": 48, "max_sequence_length": 16, "output_type": "latent"}


def tokenizer() -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def wan_transformer(seed: int = 0, *, layers: int = 4, heads: int = 2, in_channels: int = 16) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=16,
        text_dim=32,
        freq_dim=64,
        ffn_dim=64,
        num_layers=layers,
        rope_max_seq_len=32,
    ).eval()


def wan_small(seed: int = 7) -> WanTransformer3DModel:
    return wan_transformer(seed, layers=2, heads=1)


def wan_vae() -> AutoencoderKLWan:
    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()


def wan_text_encoder() -> UMT5EncoderModel:
    torch.manual_seed(2)
    config = UMT5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return UMT5EncoderModel(config).eval()


def unipc(shift: float = 3.0) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def wan_pipeline(scheduler=None, transformer=None, **kwargs) -> WanPipeline:
    """A Wan text-to-video pipeline; call it with ``**WAN_CALL`` for latents."""
    pipe = WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=wan_text_encoder(),
        vae=wan_vae(),
        transformer=transformer if transformer is not None else wan_transformer(),
        scheduler=scheduler or unipc(),
        **kwargs,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cog_transformer(seed: int = 0, *, layers: int = 2, rotary: bool = True) -> CogVideoXTransformer3DModel:
    torch.manual_seed(seed)
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=layers,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=rotary,
    ).eval()


def cog_small(seed: int = 7) -> CogVideoXTransformer3DModel:
    """Like CogVideoX-2B beside 5B: positions added, not rotated."""
    return cog_transformer(seed, layers=1, rotary=False)


def cog_pipeline(scheduler=None, transformer=None) -> CogVideoXPipeline:
    """A CogVideoX text-to-video pipeline; call it with ``**COG_CALL`` for latents."""
    torch.manual_seed(3)
    text = T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()
    pipe = CogVideoXPipeline(
        tokenizer=tokenizer(),
        text_encoder=text,
        vae=vae,
        transformer=transformer if transformer is not None else cog_transformer(),
        scheduler=scheduler or CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen_transformer(seed: int = 0, *, layers: int = 4, heads: int = 2, **config) -> QwenImageTransformer2DModel:
    torch.manual_seed(seed)
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=16,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        **config,
    ).eval()


def qwen_small(seed: int = 7) -> QwenImageTransformer2DModel:
    return qwen_transformer(seed, layers=2, heads=1)


def qwen_text_encoder() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(4)
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def qwen_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As the released models have it: shifted by the number of tokens, the last sigma stretched to 0.02."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )


def qwen_vae() -> AutoencoderKLQwenImage:
    torch.manual_seed(5)
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def qwen_pipeline(transformer=None) -> QwenImagePipeline:
    """A Qwen-Image text-to-image pipeline; call it with ``**QWEN_CALL`` for latents."""
    pipe = QwenImagePipeline(
        tokenizer=tokenizer(),
        text_encoder=qwen_text_encoder(),
        vae=qwen_vae(),
        transformer=transformer if transformer is not None else qwen_transformer(),
        scheduler=qwen_scheduler(),
    )
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0  # its words are none of ours
    pipe.set_progress_bar_config(disable=True)
    return pipe


def family(name: str) -> tuple[DiffusionPipeline, ModelMixin]:
    """A pipeline and the small model beside it, by the family's name."""
    if name == "qwen-image":
        return qwen_pipeline(), qwen_small()
    return (cog_pipeline(), cog_small()) if name == "cogvideox" else (wan_pipeline(), wan_small())


def arguments(pipe, prompt="a red cat runs", *, steps: int = 12, guidance: float = 5.0, **kwargs):
    """A call's arguments but for its random numbers."""
    qwen = isinstance(pipe, QwenImagePipeline)
    call = QWEN_CALL if qwen else COG_CALL if isinstance(pipe, CogVideoXPipeline) else WAN_CALL
    if qwen:
        negative = [""] * len(prompt) if isinstance(prompt, list) else ""
        scale = {"true_cfg_scale": guidance, "negative_prompt": negative if guidance > 1 else None}
    else:
        scale = {"guidance_scale": guidance}
    return {**call, **scale, "prompt": prompt, "num_inference_steps": steps, **kwargs}


def latents(pipe, prompt="a red cat runs", *, steps: int = 12, seed: int = 0, guidance: float = 5.0, **kwargs):
    """Final latents of a run."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(prompt, list):
        generator = [torch.Generator().manual_seed(seed + i) for i in range(len(prompt))]
    given = arguments(pipe, prompt, steps=steps, guidance=guidance, **kwargs)
    result = pipe(generator=generator, **given)
    return result.images if isinstance(pipe, QwenImagePipeline) else result.frames
