"""Whole sampling runs on models of Wan's real shapes with random weights: what an action costs, what a schedule saves.

Random weights cost what trained ones do; nothing here says anything about pictures.  The pipeline is diffusers' own
``WanPipeline`` without text encoder and VAE: it is given embeddings and returns latents.  Schedules are replayed from
the step counts that the papers publish or that follow from their latencies (sources beside them below).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from vaccel.actions import Action, Forecast, Full, Rescale, Residual, Small

WAN = {"attention_head_dim": 128, "freq_dim": 256, "text_dim": 4096}
SIZES = {
    "Wan2.1-14B": {**WAN, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    "Wan2.1-1.3B": {**WAN, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "tiny": {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64, "num_layers": 2, "text_dim": 32},
}
CLIPS = {
    "480p": (480, 832, 81), "480p, 17 frames": (480, 832, 17), "480p, 5 frames": (480, 832, 5), "tiny": (32, 32, 9),
}  # fmt: skip
STEPS = 50


def transformer(size: str, device: str, dtype: torch.dtype, seed: int = 0) -> WanTransformer3DModel:
    """Random weights of a real shape."""
    torch.manual_seed(seed)
    with torch.device(device):
        return WanTransformer3DModel(**SIZES[size]).eval().requires_grad_(False).to(dtype)


def pipeline(size: str, device: str, dtype: torch.dtype) -> WanPipeline:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    model = transformer(size, device, dtype)
    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Clock:
    """Times on the device: marks are made without waiting, read at the end."""

    def __init__(self, device: str):
        self.cuda, self._marks = device == "cuda", []

    def mark(self) -> None:
        if self.cuda:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Between each mark and the next."""
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in zip(self._marks, self._marks[1:], strict=False)]
        return [1000 * (b - a) for a, b in zip(self._marks, self._marks[1:], strict=False)]


def run(pipe: WanPipeline, clip: str, steps: int) -> list[float]:
    """Milliseconds of every step of one run, both branches and the solver included."""
    height, width, frames = CLIPS[clip]
    device, dtype = next(pipe.transformer.parameters()).device, pipe.transformer.dtype
    generator = torch.Generator(device).manual_seed(0)
    shape = 1, 512 if clip != "tiny" else 8, pipe.transformer.config.text_dim
    text, empty = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
    clock = Clock(device.type)

    def end(pipe: Any, index: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        clock.mark()
        return kwargs

    clock.mark()
    pipe(
        prompt_embeds=text,
        negative_prompt_embeds=empty,
        height=height,
        width=width,
        num_frames=frames,
        num_inference_steps=steps,
        guidance_scale=5.0,
        generator=generator,
        output_type="latent",
        callback_on_step_end=end,
    )
    return clock.milliseconds()


# -- schedules ---------------------------------------------------------------------------------------------------------


def spread(count: int, slots: int) -> set[int]:
    """``count`` of ``slots`` places, the first among them, as even as can be."""
    return {i * slots // count for i in range(count)}


def direction_magnitude(full: int) -> list[Action]:
    """10 large steps, 37 of which ``full - 10`` are large again and the rest rescaled, 3 small (METHODS.md 1)."""
    # The first step of the range is substituted: a refresh comes after some.
    again = {i + 37 // (full - 9) for i in spread(full - 9, 37)} if full > 10 else set()
    middle: list[Action] = [Full() if i in sorted(again)[: full - 10] else Rescale() for i in range(37)]
    return [Full()] * 10 + middle + [Small()] * 3


def srdiffusion(sketch: int, rendered: int | None = None) -> list[Action]:
    """``sketch`` large steps, then small ones; with TeaCache ``rendered`` of those are computed, evenly."""
    rest = STEPS - sketch
    computed = spread(rendered or rest, rest)
    return [Full()] * sketch + [Small() if i in computed else Residual(model="small") for i in range(rest)]


def residuals(full: Iterable[int]) -> list[Action]:
    full = set(full)
    return [Full() if i in full else Residual() for i in range(STEPS)]


#: name -> (actions, published speedup on Wan2.1-14B 480p or None, where the step count comes from).  The papers are
#: OpenReview egUfF6cesw (DirectionMagnitude), arXiv 2505.19151 (SRDiffusion) and arXiv 2511.00090 (LeMiCa).
SCHEDULES: dict[str, tuple[list[Action], float | None, str]] = {
    "DirectionMagnitude tau=0.001": (direction_magnitude(19), 2.21, "egUfF6cesw, Table 2 latencies: 19 large steps"),
    "DirectionMagnitude tau=0.002": (direction_magnitude(14), 2.76, "egUfF6cesw, Table 2 latencies: 14 large steps"),
    "DirectionMagnitude tau=0.005": (direction_magnitude(13), 2.95, "egUfF6cesw, Table 2 latencies: 13 large steps"),
    "DirectionMagnitude tau=0.010": (direction_magnitude(12), 3.12, "egUfF6cesw, Table 2 latencies: 12 large steps"),
    "SRDiffusion delta=0.01": (srdiffusion(10), 2.84, "arXiv 2505.19151, latencies: switch after 10 steps"),
    "SRDiffusion delta=0.03": (srdiffusion(8), 3.21, "arXiv 2505.19151, latencies: switch after 7.6 steps"),
    "SRDiffusion delta=0.01 + TeaCache": (srdiffusion(10, 15), 3.91, "3.91 and 2.84 give 37 % of 40 small steps"),
    "LeMiCa B=25": (residuals([*range(12), 13, 15, 18, 21, 25, 29, 34, 38, 42, 45, 47, 48, 49]), None, "its authors"),
    "LeMiCa B=20": (residuals([*range(10), 11, 14, 18, 23, 29, 36, 42, 46, 48, 49]), None, "its authors"),
    "LeMiCa B=17": (residuals([*range(8), 9, 12, 16, 22, 29, 36, 43, 47, 49]), None, "its authors"),
    "LeMiCa B=14": (residuals([*range(6), 7, 10, 17, 24, 31, 38, 45, 49]), None, "its authors"),
    "TeaCache 0.2": (residuals(spread(18, 49) | {49}), 2.62, "50 / 2.62 = 19 computed steps, first and last"),
}
#: As above, with 8-bit attention in both models; the speedup is against full steps with exact attention.
EIGHT_BIT: dict[str, tuple[list[Action], float | None, str]] = {
    "SRDiffusion delta=0.01 + TeaCache + 8-bit attention": (
        srdiffusion(10, 15), 6.22, "arXiv 2505.19151: INT8 or FP8 attention as a third layer, on an H20"
    ),
}  # fmt: skip
#: Some steps of every action a two-model pipeline has.
EVERY_ACTION: list[Action] = [
    *[Full()] * 4, *[Residual()] * 4, Residual("output"), *[Forecast()] * 4, *[Rescale()] * 4, *[Small()] * 4,
]  # fmt: skip


def by_action(actions: list[Action], milliseconds: list[float]) -> dict[str, dict[str, float]]:
    """Median and spread of each action's steps; of several the first (warm-up, capture) is left out."""
    found: dict[str, list[float]] = {}
    for action, ms in zip(actions, milliseconds, strict=True):
        found.setdefault(_name(action), []).append(ms)
    return {name: spread_of(times[1:] or times) for name, times in found.items()}


def _name(action: Action) -> str:
    if isinstance(action, Residual):
        return f"Residual {action.reuse}" + (" of the small model" if action.model == "small" else "")
    return type(action).__name__


def spread_of(times: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"q1": round(low, 3), "median": round(middle, 3), "q3": round(high, 3), "n": len(times)}
