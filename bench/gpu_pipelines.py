"""Parts of the GPU suite that run whole pipelines: the trained families, and real sizes beside what else there is.

``families``: both trained families on the GPU, every method beside the full model, eager and with captured steps.
``rivals``: whole runs of Wan2.1-1.3B's or Flux's shape, a third of the steps computed, by vaccel, diffusers' caches and
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

SHARE = 0.34  # of the rivals' steps are computed
#: The glyph family's methods beside forecasts.
IMAGE_METHODS = ("EasyCache(threshold=1.0)", "MixCache(theta=0.3, interval=3, levels=('step', 'cfg'))", "steps(17)")


# -- trained families --------------------------------------------------------------------------------------------------


def families(measured: Measured, device: str, until: float, dry: bool) -> None:
    """Every method on both trained families: fidelity to the full model there, eager and with captured steps."""
    for name, load in (("moving shapes", _shapes), ("glyphs", _glyphs)):
        for dtype in (torch.float32, torch.bfloat16):
            what = f"{name}, {str(dtype).removeprefix('torch.')}"
            measured.payload["families"][what] = found = {}
            with measured.measuring(what), torch.no_grad():
                pipe, small, call, caption, contenders = load(device, dtype)
                call = {**call, "num_inference_steps": 50}
                full, seconds = _run(pipe, caption, call)
                full, seconds = _run(pipe, caption, call)  # the first warms up
                found["full"] = {"seconds": seconds}
            for contender in contenders[:: 8 if dry else 1]:
                if time.monotonic() > until or (dry and dtype != torch.float32):
                    measured.payload["not_run"].append(f"{what}: {contender.label}")
                    continue
                with measured.measuring(f"{what}: {contender.label}"), torch.no_grad():
                    found[contender.label] = _against(full, pipe, small, contender, caption, call, device)


Loaded = tuple[Any, Any, dict[str, Any], str, list[Any]]


def _shapes(device: str, dtype: torch.dtype) -> Loaded:
    from vaccel.cli.compare import default_methods
    from vaccel.demo import family, shapes
    from vaccel.evaluate import parse_contender

    loaded = family.load(dtype=dtype)
    texts = [text for text in default_methods(loaded.folder) if "MagCache" not in text]  # which needs its ratios
    contenders = [parse_contender(text, loaded.folder) for text in texts]
    return loaded.pipe.to(device), loaded.small.to(device), loaded.call, shapes.held_out_captions(1)[0], contenders


def _glyphs(device: str, dtype: torch.dtype) -> Loaded:
    from vaccel.demo import glyphs, image_family
    from vaccel.evaluate import Contender, parse_contender

    loaded = image_family.load(dtype=dtype)
    methods = {f"Forecast, shaped, {n}": vaccel.Forecast.shaped(50, n) for n in (17, 9)}
    contenders = [Contender(label, "vaccel", "Forecast", method) for label, method in methods.items()]
    contenders += [parse_contender(text) for text in IMAGE_METHODS]
    small = loaded.small.to(device) if loaded.small is not None else None
    return loaded.pipe.to(device), small, loaded.call, glyphs.held_out_captions(1)[0], contenders


def _run(pipe: Any, caption: str, call: dict[str, Any]) -> tuple[Any, float]:
    """A clip or image as an array, and the seconds it took."""
    generator, began = torch.Generator().manual_seed(0), time.perf_counter()
    output = pipe(caption, generator=generator, output_type="np", **call)[0]
    return output, round(time.perf_counter() - began, 4)  # the array is on the host: nothing is under way


def _against(
    full: Any, pipe: Any, small: Any, contender: Any, caption: str, call: dict[str, Any], device: str
) -> dict[str, Any]:
    """One contender eager and captured: PSNR to the full model, computed calls, seconds of the second run."""
    from vaccel.evaluate import metrics

    call = {**call, "num_inference_steps": contender.num_steps or call["num_inference_steps"]}
    if contender.kind != "vaccel":
        with contender.applied(pipe, small):
            made, seconds = _run(pipe, caption, call)
        return {"psnr": metrics.psnr(full[0], made[0]), "seconds": seconds}
    found: dict[str, Any] = {}
    captured = {"captured": {"cuda_graphs": True}} if device == "cuda" else {}
    for mode, options in {"eager": {"cuda_graphs": False}, **captured}.items():
        given = {"small": small if contender.needs_small else None, **options}
        with vaccel.accelerate(pipe, contender.method, **given) as handle:
            for _ in range(3 if device == "cuda" else 1):  # what comes once a run is captured in the second
                made, seconds = _run(pipe, caption, call)
            found[mode] = {
                "psnr": metrics.psnr(full[0], made[0]), "seconds": seconds, "calls": handle.trace.calls,
                "timeline": handle.trace.timeline(), "refused": handle.refused,
            }  # fmt: skip
    return found


# -- beside what else there is -----------------------------------------------------------------------------------------


def rivals(measured: Measured, name: str, device: str, until: float, dry: bool) -> None:
    """Seconds of whole runs, full and with ``SHARE`` of the steps computed."""
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
        self.pipe, self.run, self.steps, self.computed = pipe, run, steps, round(SHARE * steps)


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

    return Model(pipe, run, 28)


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
    forecast = vaccel.Forecast.shaped(model.steps, model.computed)
    found = {
        "full": lambda: contextlib.nullcontext({}),
        "vaccel Schedule": lambda: _ours(model, _schedule(model)),
        "vaccel Forecast": lambda: _ours(model, forecast),
        "diffusers TaylorSeer": lambda: _theirs(model, _taylor()),
        "diffusers MagCache": lambda: _theirs(model, _mag(model)),
        "diffusers FirstBlockCache, all but the first": lambda: _theirs(model, _first_block()),
    }
    with contextlib.suppress(ImportError):
        import cache_dit  # noqa: F401

        found["cache-dit, static mask"] = lambda: _cache_dit(model)
    if not dry:
        found["vaccel Schedule, cuda graphs"] = lambda: _ours(model, _schedule(model), cuda_graphs=True)
        found["vaccel Forecast, cuda graphs"] = lambda: _ours(model, forecast, cuda_graphs=True)
        # From here on the blocks stay compiled.
        found["full, compiled blocks"] = lambda: _compiled(model)
        found["vaccel Forecast, compiled blocks"] = lambda: _ours(model, forecast)
        found["vaccel Forecast, compiled blocks, cuda graphs"] = lambda: _ours(model, forecast, cuda_graphs=True)
    return found


def even(model: Model) -> list[int]:
    return sorted({round(k * (model.steps - 1) / (model.computed - 1)) for k in range(model.computed)})


def _schedule(model: Model) -> vaccel.methods.Method:
    return vaccel.Schedule(even(model), num_steps=model.steps)


@contextlib.contextmanager
def _ours(model: Model, method: Any, **options: Any) -> Iterator[dict[str, Any]]:
    with vaccel.accelerate(model.pipe, method, **{"cuda_graphs": False, **options}) as handle:
        yield {"handle": handle}


@contextlib.contextmanager
def _theirs(model: Model, config: Any) -> Iterator[dict[str, Any]]:
    model.pipe.transformer.enable_cache(config)
    try:
        yield {}
    finally:
        model.pipe.transformer.disable_cache()


def _taylor() -> Any:
    from diffusers import TaylorSeerCacheConfig

    # The first two, every third after it: 18 of 50.  Without lite mode only attention is predicted.
    return TaylorSeerCacheConfig(3, 2, max_order=1, use_lite_mode=True)


def _mag(model: Model) -> Any:
    from diffusers import MagCacheConfig

    return MagCacheConfig(0.5, 2, 0.0, num_inference_steps=model.steps, mag_ratios=torch.ones(model.steps))


def _first_block() -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(1e9)


@contextlib.contextmanager
def _cache_dit(model: Model) -> Iterator[dict[str, Any]]:
    import cache_dit

    mask = [int(i in even(model)) for i in range(model.steps)]
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=0, num_inference_steps=model.steps,
        steps_computation_mask=mask, steps_computation_policy="static",
    )  # fmt: skip
    cache_dit.enable_cache(model.pipe, cache_config=config)
    try:
        yield {}
    finally:
        cache_dit.disable_cache(model.pipe)


@contextlib.contextmanager
def _compiled(model: Model) -> Iterator[dict[str, Any]]:
    model.pipe.transformer.compile_repeated_blocks(fullgraph=True)
    model.run(2)
    yield {}


def _timed(model: Model, device: str, dry: bool, handle: Any = None) -> dict[str, Any]:
    """A warm-up, then a run: seconds, the dearest and cheapest steps; what a handle says of it."""
    steps = model.steps
    model.run(steps if handle is not None else 2)  # a handle captures then
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
