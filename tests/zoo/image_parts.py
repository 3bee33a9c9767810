"""What the cases of image and audio pipelines with transformers share."""

from __future__ import annotations

import numpy
import tiny
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from PIL import Image
from transformers import (
    BatchFeature,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

from .components import quiet as quiet

PROMPT = "a red cat runs"
TWO = [PROMPT, "a blue dog"]
TWO_NEGATIVE = ["a dog", "a cat"]
#: Puts the words of all messages after each other.
CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"

#: The last message's words alone: some pipelines put many words of their own before it.
LAST = "{% set said = messages[-1]['content'] %}{{ said if said is string else said[-1]['text'] }}"


def stirred(model: torch.nn.Module, seed: int = 100) -> torch.nn.Module:
    """The model in ``eval`` mode, with small random numbers where training starts at zero.

    Output layers of zeros would make a denoiser blind to what it is given.
    """
    random = torch.Generator().manual_seed(seed)
    for name, weights in model.named_parameters():
        if not name.endswith("bias") and not weights.any():
            weights.data.normal_(std=0.1, generator=random)
    return model.eval()


def modulated(model: torch.nn.Module, factor: float) -> torch.nn.Module:
    """With larger gates of the blocks, which start so small that a prompt's words hardly count."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" in name and name.endswith("linear.weight"):
                weights *= factor
    return stirred(model)


def tokenizer(length: int = 16, template: str | None = None) -> PreTrainedTokenizerFast:
    """The word tokenizer for so many tokens, with a chat template where one is given."""
    made = tiny.tokenizer()
    made.model_max_length = length
    made.chat_template = template
    return made


def clip_text(seed: int = 11, *, width: int = 32, projected: bool = False, **config):
    """A CLIP text encoder; ``projected`` for one with the projection of its pooled state."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "vocab_size": 64}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    made = CLIPTextConfig(**{**sizes, **tokens, "num_hidden_layers": 2, "projection_dim": width, **config})
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(made).eval()


def t5_text(seed: int = 12, width: int = 32) -> T5EncoderModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "d_model": width, "d_kv": 8, "d_ff": 2 * width, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()


def decoder_sizes(width: int, layers: int = 2) -> dict:
    """The configuration of a small language model for the word tokenizer."""
    return {
        "vocab_size": 64,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }


def qwen3_text(seed: int = 14, width: int = 16, layers: int = 2, *, head: bool = False):
    torch.manual_seed(seed)
    return (Qwen3ForCausalLM if head else Qwen3Model)(Qwen3Config(**decoder_sizes(width, layers))).eval()


def gemma2_text(seed: int = 15, width: int = 16, layers: int = 2) -> Gemma2Model:
    torch.manual_seed(seed)
    return Gemma2Model(Gemma2Config(**decoder_sizes(width, layers))).eval()


def kl_vae(channels: int = 4, *, levels: int = 2, seed: int = 13, kind=AutoencoderKL, **config):
    """A VAE of pictures, ``levels - 1`` times halved."""
    torch.manual_seed(seed)
    sizes = {"block_out_channels": (8,) * levels, "latent_channels": channels, "norm_num_groups": 4}
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 1,
    }
    return kind(**sizes, **blocks, **config).eval()


def flow(shift: float = 3.0, **config) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift, **config)


def picture(width: int = 32, height: int = 32, seed: int = 16) -> Image.Image:
    """A picture of random colours."""
    values = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(values)


def mask(width: int = 32, height: int = 32) -> Image.Image:
    """The left half is to be painted."""
    values = numpy.zeros((height, width), numpy.uint8)
    values[:, : width // 2] = 255
    return Image.fromarray(values)


#: The words that stand for pictures, and their numbers after the word tokenizer's own.
SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
SEEN_IDS = {"image_token_id": 10, "vision_start_token_id": 11, "vision_end_token_id": 12, "video_token_id": 13}


def seeing_tokenizer(length: int = 64, template: str | None = CHAT) -> PreTrainedTokenizerFast:
    made = tokenizer(length, template)
    words = ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
    made.add_special_tokens({"additional_special_tokens": words})
    return made


def qwen3vl_text(seed: int = 17, *, layers: int = 2, head: bool = True):
    """A Qwen 3 VL model, for ``Processor(16)``; with the head of a language model or without."""
    torch.manual_seed(seed)
    text = {**decoder_sizes(16, layers), "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **SEEN_IDS)
    return (Qwen3VLForConditionalGeneration if head else Qwen3VLModel)(config).eval()


class Patches:
    """Makes every picture 4 by 4 patches, of which an encoder makes 2 by 2 tokens.

    Transformers' own processors need torchvision.
    """

    merge_size = 2

    def __init__(self, patch: int) -> None:
        self.patch = patch

    def __call__(self, images, return_tensors="pt") -> BatchFeature:
        images = images if isinstance(images, (list, tuple)) else [images]
        grid = torch.tensor([[1, 4, 4]] * len(images))
        return BatchFeature({"pixel_values": torch.cat([self.one(image) for image in images]), "image_grid_thw": grid})

    def one(self, image: Image.Image) -> torch.Tensor:
        """Every patch twice, as if in two frames."""
        small = image.convert("RGB").resize((4 * self.patch, 4 * self.patch))
        values = torch.tensor(numpy.asarray(small).copy()).float() / 127.5 - 1
        return values.reshape(16, -1).repeat(1, 2)


class Processor:
    """Text and pictures for a Qwen-VL encoder."""

    def __init__(self, patch: int = 14, template: str | None = CHAT) -> None:
        self.image_processor = Patches(patch)
        self.tokenizer = seeing_tokenizer(64, template)

    def __call__(self, text=None, images=None, padding=True, padding_side="right", **kwargs) -> BatchFeature:
        text = [text] if isinstance(text, str) else text
        text = [one.replace("<|image_pad|>", "<|image_pad|>" * 4) for one in text]
        length = {key: kwargs[key] for key in ("max_length", "truncation") if key in kwargs}
        found = dict(self.tokenizer(text, padding=padding, padding_side=padding_side, return_tensors="pt", **length))
        found["mm_token_type_ids"] = (found["input_ids"] == SEEN_IDS["image_token_id"]).long()
        if images is not None:
            found.update(self.image_processor(images))
        return BatchFeature(found)

    def apply_chat_template(self, messages, **kwargs):
        """A list of one conversation's tokens, as transformers' processors have it."""
        found = self.tokenizer.apply_chat_template(messages, **kwargs)
        return [found] if isinstance(found, list) and isinstance(found[0], int) else found

    def batch_decode(self, *args, **kwargs):
        return self.tokenizer.batch_decode(*args, **kwargs)
