"""Parts of the GPU suite that run whole pipelines: the trained families, and real sizes beside what else there is.

``families``: both trained families on the GPU, every method beside the full model, eager and with captured steps.
``rivals``: 50 steps of Wan2.1-1.3B's or Flux's shape, all at about 17 computed steps, by vaccel, diffusers' caches and
cache-dit, with and without compiled blocks.  Weights are random there: it is time that is measured, and what a skipped
step costs.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import e2e
import torch
from gpu_parts import Measured

import vaccel

COMPUTED = 17  # of the rivals' 50 steps
#: The glyph family's methods; artifacts are calibrated on the spot.
IMAGE_METHODS = (
    "Forecast(artifact='forecast.json', budget=17)", "Forecast(artifact='forecast.json', budget=9)",
    "EasyCache(threshold=1.0)", "MixCache(theta=0.3, interval=3, levels=('step', 'cfg'))",
    "Auto(artifact='forecast.json', speedup=2.5)", "steps(17)",
)  # fmt: skip


# -- trained families --------------------------------------------------------------------------------------------------


def families(measured: Measured, device: str, until: float, dry: bool) -> None:
    """Every method on both trained families, in float32 and bfloat16; with graphs each method's run once more."""
    for dtype in (torch.float32, torch.bfloat16):
        for name, load in (("moving shapes", _shapes), ("glyphs", _glyphs)):
            what = f"{name}, {str(dtype).removeprefix('torch.')}"
            if time.monotonic() > until or (dry and dtype != torch.float32):
                measured.payload["not_run"].append(what)
                continue
            with measured.measuring(what):
                measured.payload["families"][what] = _family(*load(device, dtype, dry), dry, device)


def _shapes(device: str, dtype: torch.dtype, dry: bool) -> tuple[Any, Any, dict[str, Any], list[str], list[Any]]:
    from vaccel.cli.compare import default_methods
    from vaccel.demo import family, shapes
    from vaccel.evaluate import parse_contender

    loaded = family.load(dtype=dtype)
    texts = default_methods(loaded.folder)[:: 8 if dry else 1]
    contenders = [parse_contender(text, loaded.folder) for text in texts]
    return loaded.pipe.to(device), loaded.small.to(device), loaded.call, shapes.held_out_captions(2), contenders


def _glyphs(device: str, dtype: torch.dtype, dry: bool) -> tuple[Any, Any, dict[str, Any], list[str], list[Any]]:
    import tempfile
    from pathlib import Path

    from measure_unet import captions_to_calibrate

    from vaccel.calibrate import calibrate_forecast
    from vaccel.demo import glyphs, image_family
    from vaccel.evaluate import parse_contender

    loaded = image_family.load(dtype=dtype)
    pipe = loaded.pipe.to(device)
    with tempfile.TemporaryDirectory() as folder:
        call = {**loaded.call, "num_inference_steps": 50}
        if not dry:
            calibrate_forecast(pipe, captions_to_calibrate(4), Path(folder) / "forecast.json", call=call)
        texts = [text for text in IMAGE_METHODS if not (dry and "artifact" in text)]
        contenders = [parse_contender(text, folder) for text in texts]
    small = loaded.small.to(device) if loaded.small is not None else None
    return pipe, small, loaded.call, glyphs.held_out_captions(2), contenders


def _family(
    pipe: Any, small: Any, call: dict[str, Any], captions: list[str], contenders: list[Any], dry: bool, device: str
) -> dict[str, Any]:
    from vaccel.evaluate import compare

    call = {**call, "num_inference_steps": 12 if dry else 50}
    result = compare(pipe, [c for c in contenders if not (dry and c.artifact)], captions, small=small, call=call)
    failures = [f"{f.contender}: {f.error}" for f in result.failures]
    found = {"methods": result.summary(), "failures": failures, "graphs": {}}
    if device == "cuda":
        for contender in contenders:
            if contender.kind == "vaccel":
                found["graphs"][contender.label] = _captured(pipe, small, contender, captions[0], call)
    return found


def _captured(pipe: Any, small: Any, contender: Any, caption: str, call: dict[str, Any]) -> dict[str, Any]:
    """One method eager and with captured steps: seconds, and how far the latents are from each other."""
    call = {**call, "num_inference_steps": contender.num_steps or call["num_inference_steps"], "output_type": "latent"}
    made, seconds, refused = [], [], {}
    for options in ({}, {"cuda_graphs": True}):
        given = {"small": small if contender.needs_small else None, **options}
        with vaccel.accelerate(pipe, contender.method, **given) as handle:
            for _ in range(2):  # the first captures
                torch.cuda.synchronize()
                began = time.perf_counter()
                output = pipe(caption, generator=torch.Generator().manual_seed(0), **call)[0]
                torch.cuda.synchronize()
                took = time.perf_counter() - began
            made.append(output.float())
            seconds.append(round(took, 4))
            refused = handle.refused
    eager, captured = made
    return {
        "seconds": dict(zip(("eager", "captured"), seconds, strict=True)), "refused": refused,
        "relative_difference": float((eager - captured).norm() / eager.norm()),
    }  # fmt: skip


# -- beside what else there is -----------------------------------------------------------------------------------------


def rivals(measured: Measured, name: str, device: str, until: float, dry: bool) -> None:
    """Seconds of whole runs, full and at ``COMPUTED`` steps; the full run is timed again before every contender."""
    model = MODELS["tiny" if dry else name](device)
    for label, context in contenders(model, dry).items():
        if time.monotonic() > until:
            measured.payload["not_run"].append(label)
            continue
        with measured.measuring(label), context() as options:
            measured.payload["runs"][label] = _timed(model, device, dry, **options)
    if not dry:
        torch.compiler.reset()


class Model:
    """A pipeline of real size with random weights, and its call.

    Attributes:
        run: one run of so many steps; returns each step's milliseconds.
    """

    def __init__(self, pipe: Any, run: Callable[[int], list[float]], steps: int):
        self.pipe, self.run, self.steps = pipe, run, steps


def _wan(size: str, clip: str, device: str) -> Model:
    pipe = e2e.pipeline(size, device, torch.bfloat16)
    return Model(pipe, lambda steps: e2e.run(pipe, clip, steps), e2e.STEPS)


def _flux(device: str, **small: Any) -> Model:
    """FLUX.1 dev's shape (12 B weights), 1024 x 1024."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    with torch.device(device):
        transformer = FluxTransformer2DModel(guidance_embeds=True, **small).eval().requires_grad_(False).bfloat16()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxPipeline(scheduler=scheduler, transformer=transformer, **parts)
    pipe.set_progress_bar_config(disable=True)
    config, generator = transformer.config, torch.Generator(device).manual_seed(0)
    text = torch.randn(1, 512, config.joint_attention_dim, generator=generator, device=device).bfloat16()
    pooled = torch.randn(1, config.pooled_projection_dim, generator=generator, device=device).bfloat16()

    def run(steps: int) -> list[float]:
        clock = e2e.Clock(device)
        clock.mark()
        pipe(
            prompt_embeds=text, pooled_prompt_embeds=pooled, height=1024 if not small else 64,
            width=1024 if not small else 64, num_inference_steps=steps, output_type="latent",
            generator=torch.Generator(device).manual_seed(1),
            callback_on_step_end=lambda pipe, index, t, kwargs: clock.mark() or kwargs,
        )  # fmt: skip
        return clock.milliseconds()

    return Model(pipe, run, e2e.STEPS)


MODELS: dict[str, Callable[[str], Model]] = {
    "Wan2.1-1.3B": lambda device: _wan("Wan2.1-1.3B", "480p, 17 frames", device),
    "Wan2.1-14B": lambda device: _wan("Wan2.1-14B", "480p, 17 frames", device),
    "Flux": _flux,
    "tiny": lambda device: _flux(
        device, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, in_channels=4, axes_dims_rope=(4, 4, 8),
    ),
}  # fmt: skip


def contenders(model: Model, dry: bool) -> dict[str, Callable[[], contextlib.AbstractContextManager[dict]]]:
    """By label a context in which the pipeline is run that way; it gives what ``_timed`` is to know."""
    found = {
        "full": contextlib.nullcontext,
        "vaccel Schedule": lambda: _ours(model, _schedule(model)),
        "vaccel Forecast": lambda: _ours(model, vaccel.Forecast.shaped(model.steps, COMPUTED)),
        "diffusers TaylorSeer": lambda: _theirs(model, _taylor()),
        "diffusers MagCache": lambda: _theirs(model, _mag(model)),
        "diffusers FirstBlockCache, all but the first": lambda: _theirs(model, _first_block()),
    }
    with contextlib.suppress(ImportError):
        import cache_dit  # noqa: F401

        found["cache-dit, static mask"] = lambda: _cache_dit(model)
    if not dry:
        found["vaccel Schedule, cuda graphs"] = lambda: _ours(model, _schedule(model), cuda_graphs=True)
        forecast = vaccel.Forecast.shaped(model.steps, COMPUTED)
        found["vaccel Forecast, cuda graphs"] = lambda: _ours(model, forecast, cuda_graphs=True)
        # From here on the blocks stay compiled.
        found["full, compiled blocks"] = lambda: _compiled(model)
        found["vaccel Forecast, compiled blocks"] = lambda: _ours(model, forecast)
        found["vaccel Forecast, compiled blocks, cuda graphs"] = lambda: _ours(model, forecast, cuda_graphs=True)
    return {label: (lambda make=make: _context(make)) for label, make in found.items()}


@contextlib.contextmanager
def _context(make: Callable[[], contextlib.AbstractContextManager]) -> Iterator[dict[str, Any]]:
    with make() as options:
        yield options or {}


def even(model: Model) -> list[int]:
    return sorted({round(k * (model.steps - 1) / (COMPUTED - 1)) for k in range(COMPUTED)})


def _schedule(model: Model) -> vaccel.methods.Method:
    return vaccel.Schedule(even(model), num_steps=model.steps)


@contextlib.contextmanager
def _ours(model: Model, method: Any, **options: Any) -> Iterator[dict[str, Any]]:
    with vaccel.accelerate(model.pipe, method, **options) as handle:
        yield {"handle": handle}


@contextlib.contextmanager
def _theirs(model: Model, config: Any) -> Iterator[None]:
    model.pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        model.pipe.transformer.disable_cache()


def _taylor() -> Any:
    from diffusers import TaylorSeerCacheConfig

    # The first two, every third after it: 18 of 50.
    return TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2, max_order=1)


def _mag(model: Model) -> Any:
    from diffusers import MagCacheConfig

    return MagCacheConfig(0.5, 2, 0.0, num_inference_steps=model.steps, mag_ratios=torch.ones(model.steps))


def _first_block() -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(1e9)


@contextlib.contextmanager
def _cache_dit(model: Model) -> Iterator[None]:
    import cache_dit

    mask = [int(i in even(model)) for i in range(model.steps)]
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=0, num_inference_steps=model.steps,
        steps_computation_mask=mask, steps_computation_policy="static",
    )  # fmt: skip
    cache_dit.enable_cache(model.pipe, cache_config=config)
    try:
        yield
    finally:
        cache_dit.disable_cache(model.pipe)


@contextlib.contextmanager
def _compiled(model: Model) -> Iterator[None]:
    model.pipe.transformer.compile_repeated_blocks(fullgraph=True)
    model.run(2)
    yield


def _timed(model: Model, device: str, dry: bool, handle: Any = None) -> dict[str, Any]:
    """A warm-up, then a run: seconds, the dearest and cheapest steps; what a handle says of it."""
    steps = model.steps
    model.run(steps if handle is not None else 5)  # a handle captures then
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = model.run(steps)
    ordered = sorted(times[1:])
    found: dict[str, Any] = {
        "seconds": round(sum(times) / 1000, 3), "dear_step_ms": round(statistics.median(ordered[-10:]), 3),
        "cheap_step_ms": round(statistics.median(ordered[:20]), 3), "steps_ms": [round(ms, 2) for ms in times],
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
    }  # fmt: skip
    if handle is not None:
        found |= {"timeline": handle.trace.timeline(), "refused": handle.refused}
    return found
