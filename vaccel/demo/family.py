"""Builds, saves and loads the moving-shapes family: one genuine ``WanPipeline`` folder and a small transformer.

Layout of a family's folder::

    pipeline/            a WanPipeline: tokenizer, text_encoder, vae, transformer, scheduler
    small/               the small WanTransformer3DModel, same latents and conditions
    teacache.json        TeaCache coefficients fitted on this family (absent until calibrated), likewise
    lemica.json, mixcache.json, teacache_small.json
    dual_expert/         the experts distilled from the large model (absent until trained): dual_expert.json,
                         semantic.safetensors, detail.safetensors; and diagnosis.json, written by `vaccel distill
                         diagnose`
"""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.utils import logging as diffusers_logging
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from . import shapes
from . import vae as _vae  # noqa: F401  diffusers loads a class only from a module that is imported already

MAX_TOKENS = 24
TEXT_DIM = 64
#: Arguments of every call of the family's pipeline, as it was trained.
CALL: dict[str, Any] = {
    "height": shapes.HEIGHT,
    "width": shapes.WIDTH,
    "num_frames": shapes.NUM_FRAMES,
    "guidance_scale": 4.0,
    "max_sequence_length": MAX_TOKENS,
}

#: The methods that `make compare` compares, besides the full and the small model.
METHODS = (
    "Auto(artifact='forecast.json', speedup=2.5)",
    *(f"Forecast(artifact='forecast.json', budget={n})" for n in (27, 22, 17, 13, 9)),
    "DirectionMagnitude(threshold=0.001)",
    "DirectionMagnitude(threshold=0.002)",
    "DirectionMagnitude(threshold=0.005)",
    "DirectionMagnitude(threshold=0.010)",
    "SRDiffusion(threshold=0.002)",
    "SRDiffusion(threshold=0.010)",
    "SRDiffusion(threshold=0.030)",
    "SRDiffusion(threshold=0.010, rendering=TeaCache(artifact='teacache_small.json', threshold=0.1))",
    "TeaCache(artifact='teacache.json', threshold=0.1)",
    "TeaCache(artifact='teacache.json', threshold=0.2)",
    *(f"LeMiCa(artifact='lemica.json', budget={n})" for n in (25, 17, 10)),
    "MixCache(artifact='mixcache.json')",
    "MixCache(artifact='mixcache.json', intervals='eff')",
    "DualExpert(folder='dual_expert', steps=4)",
    "DualExpert(folder='dual_expert', steps=8)",
    "diffusers.FirstBlockCache(threshold=0.1)",
    "diffusers.MagCache(threshold=0.06)",
    "diffusers.TaylorSeer(cache_interval=3)",
    "diffusers.SeaCache(threshold=0.25)",
    *(f"steps({n})" for n in (27, 22, 17, 13, 9)),
)
#: What `make demo` shows beside the full model: ours, and two of diffusers' caches that compute about as many steps.
SHOWN = (
    "Auto(artifact='forecast.json', speedup=2.5)",
    "diffusers.TaylorSeer(cache_interval=3)",
    "diffusers.SeaCache(threshold=0.25)",
)


@dataclasses.dataclass
class Family:
    """A loaded family: ``pipe(prompt, **call)`` is the full model; ``small`` goes to ``vaccel.accelerate``."""

    pipe: WanPipeline
    small: WanTransformer3DModel
    call: dict[str, Any]
    folder: Path


def shipped_folder() -> Path:
    """The folder of the weights that ship with the package."""
    return Path(str(importlib.resources.files("vaccel.demo"))) / "weights"


def load(folder: str | Path | None = None, *, dtype: torch.dtype = torch.float32) -> Family:
    """Loads the family that ships with the package, or one from a folder that ``vaccel.demo.train`` wrote.

    Raises ``FileNotFoundError`` when the folder holds no family.
    """
    folder = Path(folder) if folder is not None else shipped_folder()
    if not (folder / "pipeline" / "model_index.json").is_file():
        raise FileNotFoundError(f"no moving-shapes family at {folder}; make one with `python -m vaccel.demo.train`")
    with quietly():
        pipe = WanPipeline.from_pretrained(folder / "pipeline", dtype=dtype)
        small = WanTransformer3DModel.from_pretrained(folder / "small", dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return Family(pipe, small.eval(), dict(CALL), folder)


@contextmanager
def quietly() -> Iterator[None]:
    """Without progress bars, and without the warning that the VAE's class is not Wan's own."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def calibration_captions(count: int) -> list[str]:
    """Captions to calibrate on: from the training split, which methods are never compared on."""
    generator = torch.Generator().manual_seed(77)
    return [shapes.draw_scene(generator, held_out=False).caption for _ in range(count)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the grammar, ended by ``</s>`` as T5 does."""
    vocab = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *shapes.vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def build_text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=3 + len(shapes.vocabulary()),
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def build_transformer(size: str, z_dim: int = 64) -> WanTransformer3DModel:
    """``size`` is "large" (5.2 M weights in 8 layers) or "small" (0.4 M in 2)."""
    heads, head_dim, layers = {"large": (3, 64, 8), "small": (2, 48, 2)}[size]
    model = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=z_dim,
        out_channels=z_dim,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=heads * head_dim * 4,
        num_layers=layers,
        rope_max_seq_len=64,
    )
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    return model


def deepen(state: dict[str, torch.Tensor], old: int, new: int) -> dict[str, torch.Tensor]:
    """The weights of ``old`` blocks spread over ``new`` that compute the same to begin with.

    An added block is a copy of the one before it whose three branches end in zeros, so it passes its input on.
    """
    deeper = {name: value for name, value in state.items() if not name.startswith("blocks.")}
    sources = [index * old // new for index in range(new)]
    for index, source in enumerate(sources):
        added = index > 0 and sources[index - 1] == source
        for name, value in state.items():
            if name.startswith(f"blocks.{source}."):
                part = name.removeprefix(f"blocks.{source}.")
                ends = part.startswith(("attn1.to_out", "attn2.to_out", "ffn.net.2"))
                deeper[f"blocks.{index}.{part}"] = torch.zeros_like(value) if added and ends else value.clone()
    return deeper


def build_scheduler() -> UniPCMultistepScheduler:
    """The scheduler Wan 2.1 ships with, at its 480p shift."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )


def save(folder: str | Path, *, tokenizer, text_encoder, vae, large, small) -> None:
    """Writes a family, with weights in half precision (``load`` converts them to its ``dtype``)."""
    folder = Path(folder)
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.half(),
        vae=vae,
        transformer=large.half(),
        scheduler=build_scheduler(),
    )
    pipe.save_pretrained(folder / "pipeline")
    small.half().save_pretrained(folder / "small")
