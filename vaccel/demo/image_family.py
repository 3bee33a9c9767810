"""Builds, saves and loads the glyph family: one genuine ``StableDiffusionPipeline`` folder.

The second kind of model beside the moving shapes' one: images instead of clips, a U-Net with skip connections instead
of a transformer, predicted noise instead of velocity, and the schedulers of Stable Diffusion.

    from vaccel.demo import image_family
    family = image_family.load()
    image = family.pipe("letter G serif bold red on grass", **family.call).images[0]
    family.pipe.scheduler = image_family.build_scheduler("dpm++")

Layout of a family's folder::

    pipeline/            a StableDiffusionPipeline: tokenizer, text_encoder, vae, unet, scheduler
    small/               a small UNet2DConditionModel, same latents and captions; a family may come without
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from . import glyphs
from . import image_vae as _vae  # noqa: F401  diffusers loads a class only from a module that is imported already
from .family import quietly

MAX_TOKENS = 12
TEXT_DIM = 64
#: Arguments of every call of the family's pipeline, as it was trained.
CALL: dict[str, Any] = {"height": glyphs.SIZE, "width": glyphs.SIZE, "guidance_scale": 4.0}

#: The schedule of noise the U-Net was trained on, Stable Diffusion's.
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
#: Names of schedulers to sample with.
SCHEDULERS = ("ddim", "euler-a", "dpm++")


@dataclasses.dataclass
class ImageFamily:
    """A loaded family: ``pipe(prompt, **call)`` draws images; ``small`` goes to ``vaccel.accelerate``."""

    pipe: StableDiffusionPipeline
    small: UNet2DConditionModel | None
    call: dict[str, Any]
    folder: Path

    def sibling(self, kind: type[DiffusionPipeline]) -> DiffusionPipeline:
        """A pipeline of another kind on the same parts, such as ``StableDiffusionImg2ImgPipeline``.

        ``kind.from_pipe(family.pipe)`` alone would leave out the VAE, whose class is not Stable Diffusion's own.
        """
        with quietly():
            pipe = kind.from_pipe(self.pipe, vae=self.pipe.vae)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def shipped_folder() -> Path:
    """The folder of the weights that ship with the package."""
    return Path(str(importlib.resources.files("vaccel.demo"))) / "image_weights"


def load(folder: str | Path | None = None, *, dtype: torch.dtype = torch.float32) -> ImageFamily:
    """Loads the family that ships with the package, or one from a folder that ``train_images`` wrote.

    Raises ``FileNotFoundError`` when the folder holds no family.
    """
    folder = Path(folder) if folder is not None else shipped_folder()
    if not (folder / "pipeline" / "model_index.json").is_file():
        raise FileNotFoundError(f"no glyph family at {folder}; make one with `python -m vaccel.demo.train_images`")
    with quietly():
        pipe = StableDiffusionPipeline.from_pretrained(folder / "pipeline", dtype=dtype)
        small = None
        if (folder / "small").is_dir():
            small = UNet2DConditionModel.from_pretrained(folder / "small", dtype=dtype).eval()
    pipe.set_progress_bar_config(disable=True)
    return ImageFamily(pipe, small, dict(CALL), folder)


def build_scheduler(name: str = "ddim") -> SchedulerMixin:
    """``ddim``, ``euler-a`` (Euler ancestral) or ``dpm++`` (DPM-Solver++ 2M on Karras' noise levels).

    Raises ``ValueError`` for another name.
    """
    if name == "ddim":
        return DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False)
    if name == "euler-a":
        return EulerAncestralDiscreteScheduler(**SCHEDULE)
    if name == "dpm++":
        return DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="dpmsolver++", use_karras_sigmas=True)
    raise ValueError(f"unknown scheduler {name!r}; known: {', '.join(SCHEDULERS)}")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the grammar, between ``<s>`` and ``</s>`` as CLIP's are."""
    vocab = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *glyphs.vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )


def build_text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=4 + len(glyphs.vocabulary()),
        hidden_size=TEXT_DIM,
        intermediate_size=2 * TEXT_DIM,
        projection_dim=TEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CLIPTextModel(config)


def build_unet(widths: tuple[int, int, int] = (32, 64, 112)) -> UNet2DConditionModel:
    """2.8 M weights at the default ``widths``; captions are attended to at half the latents' resolution and less."""
    model = UNet2DConditionModel(
        sample_size=glyphs.SIZE // 2,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=4,  # the number of heads, as Stable Diffusion 1's configuration has it
        norm_num_groups=16,
    )
    torch.nn.init.zeros_(model.conv_out.weight)
    torch.nn.init.zeros_(model.conv_out.bias)
    return model


def save(folder: str | Path, *, tokenizer, text_encoder, vae, unet) -> None:
    """Writes a family, with weights in half precision (``load`` converts them to its ``dtype``)."""
    with quietly():
        pipe = StableDiffusionPipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder.half(),
            vae=vae,
            unet=unet.half(),
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.save_pretrained(Path(folder) / "pipeline")


def save_small(folder: str | Path, family: str | Path, unet: UNet2DConditionModel) -> None:
    """Writes ``family``'s pipeline with a small U-Net beside it, in half precision."""
    shutil.copytree(Path(family) / "pipeline", Path(folder) / "pipeline", dirs_exist_ok=True)
    with quietly():
        unet.half().save_pretrained(Path(folder) / "small")
