"""Pipelines of real shapes with random weights in bfloat16, for whole runs: Wan2.1, LTX-2 (video and sound), FLUX.1.

They are diffusers' own pipelines without text encoders and decoders: they are given embeddings and return latents.  A
dry run has the same classes in tiny sizes, and calls them in the same way.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import e2e
import torch

SHARE = 0.34  # of the steps are computed by whatever computes fewer


class Model:
    """A pipeline of real size with random weights, and its call.

    Attributes:
        clip: what is made, in words.
        run: one run of so many steps; returns each step's milliseconds.
        steps, computed: of a run, and how many of them are computed by what computes fewer.
    """

    def __init__(self, pipe: Any, clip: str, run: Callable[[int], list[float]], steps: int):
        self.pipe, self.clip, self.run, self.steps, self.computed = pipe, clip, run, steps, round(SHARE * steps)


def _wan(size: str, clip: str, steps: int, device: str, dry: bool) -> Model:
    size, clip = ("tiny", "tiny") if dry else (size, clip)
    pipe = e2e.pipeline(size, device, torch.bfloat16)
    return Model(pipe, clip, lambda steps: e2e.run(pipe, clip, steps), steps)


def random_weights(kind: Callable[..., Any], config: dict[str, Any], device: str) -> Any:
    """A model in bfloat16, never held in float32: 19 billion weights would not fit beside themselves."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = kind(**config).bfloat16()
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(std=0.02)
    return model


def _flux(device: str, dry: bool) -> Model:
    """FLUX.1 dev's shape (12 B weights), 1024 x 1024."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    small = {
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "in_channels": 4, "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip
    transformer = random_weights(FluxTransformer2DModel, {"guidance_embeds": True, **(small if dry else {})}, device)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxPipeline(scheduler=scheduler, transformer=transformer, **parts)
    config, generator = transformer.config, torch.Generator(device).manual_seed(0)
    text = torch.randn(1, 512, config.joint_attention_dim, generator=generator, device=device).bfloat16()
    pooled = torch.randn(1, config.pooled_projection_dim, generator=generator, device=device).bfloat16()
    side = 64 if dry else 1024
    call = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "height": side, "width": side}
    return Model(pipe, f"{side} x {side}", _runner(pipe, device, call), 28)


class Connectors:
    """In the place of what makes one text for the video and one for its sound: both are what is given."""

    def __call__(self, states: torch.Tensor, mask: torch.Tensor, padding_side: str = "left") -> tuple[Any, Any, Any]:
        return states, states, mask


class Decoder:
    """What the pipeline asks a decoder for that decodes nothing: how its latents are scaled, and sizes."""

    def __init__(self, device: str, scaled: int, **sizes: int):
        self.latents_mean, self.latents_std = torch.zeros(scaled, device=device), torch.ones(scaled, device=device)
        self.config = types.SimpleNamespace(scaling_factor=1.0, **sizes)
        self.__dict__.update(sizes)


def _ltx2(device: str, dry: bool) -> Model:
    """LTX-2's shape as diffusers has it by default: 48 blocks of video and sound, both guided by the text."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline, LTX2VideoTransformer3DModel

    small = {
        "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "num_layers": 2, "caption_channels": 16,
    }  # fmt: skip
    transformer = random_weights(LTX2VideoTransformer3DModel, small if dry else {}, device)
    shift = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1}
    video = Decoder(device, 128, spatial_compression_ratio=32, temporal_compression_ratio=8)
    sound = Decoder(
        device, 128, latent_channels=8, mel_bins=64, mel_compression_ratio=4, temporal_compression_ratio=4,
        sample_rate=16000, mel_hop_length=160,
    )  # fmt: skip
    pipe = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**shift), vae=video, audio_vae=sound, text_encoder=None,
        tokenizer=None, connectors=Connectors(), transformer=transformer, vocoder=None,
    )  # fmt: skip
    tokens, generator = 8 if dry else 256, torch.Generator(device).manual_seed(0)
    size = 1, tokens, transformer.config.caption_channels
    text, empty = (torch.randn(size, generator=generator, device=device).bfloat16() for _ in range(2))
    mask = torch.ones(1, tokens, dtype=torch.long, device=device)
    height, width, frames = (64, 64, 9) if dry else (512, 768, 25)
    call = {
        "prompt_embeds": text, "prompt_attention_mask": mask, "negative_prompt_embeds": empty,
        "negative_prompt_attention_mask": mask, "height": height, "width": width, "num_frames": frames,
        "stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0,
        "use_cross_timestep": False,
    }  # fmt: skip
    return Model(pipe, f"{height} x {width}, {frames} frames and their sound", _runner(pipe, device, call), 30)


def _runner(pipe: Any, device: str, call: dict[str, Any]) -> Callable[[int], list[float]]:
    """Runs of a pipeline that gives latents."""
    pipe.set_progress_bar_config(disable=True)

    def run(steps: int) -> list[float]:
        clock = e2e.Clock(device)
        clock.mark()
        pipe(
            **call, num_inference_steps=steps, output_type="latent", generator=torch.Generator(device).manual_seed(1),
            callback_on_step_end=lambda pipe, index, t, kwargs: clock.mark() or kwargs,
        )  # fmt: skip
        return clock.milliseconds()

    return run


#: By name, made for (device, whether the run is a dry one).
MODELS: dict[str, Callable[[str, bool], Model]] = {
    "Wan2.1-1.3B": lambda device, dry: _wan("Wan2.1-1.3B", "480p, 17 frames", e2e.STEPS, device, dry),
    "Wan2.1-14B": lambda device, dry: _wan("Wan2.1-14B", "480p, 5 frames", 30, device, dry),
    "LTX-2": _ltx2,
    "Flux": _flux,
}
