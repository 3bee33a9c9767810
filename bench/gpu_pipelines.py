"""Parts of the GPU suite that run whole pipelines: the trained families, and real sizes beside what else there is.

``families``: both trained families on the GPU, every method beside the full model, eager and with captured steps.
``rivals``: whole runs of the shapes of ``gpu_models.py``, a third of the steps computed, by vaccel, diffusers' caches
and cache-dit, with and without compiled blocks.  Weights are random there: it is time that is measured, and what a
skipped step costs.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import FluxPipeline
from gpu_models import MODELS, Model
from gpu_parts import Measured

import vaccel

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
                only_loaded = dry and dtype != torch.float32  # half precision is slow on a CPU
                call = {**call, "num_inference_steps": 2 if only_loaded else 50}
                full, seconds = _run(pipe, caption, call)
                full, seconds = _run(pipe, caption, call)  # the first warms up
                found["full"] = {"seconds": seconds}
            for contender in contenders[:: 16 if dry else 1]:
                if time.monotonic() > until or only_loaded:
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
    """Seconds of whole runs, full and with a third of the steps computed; what a model is refused by, and why."""
    model = MODELS[name](device, dry)
    measured.payload["clip"] = model.clip
    for label, context in contenders(model, dry).items():
        if time.monotonic() > until:
            measured.payload["not_run"].append(label)
            continue
        with measured.measuring(label), context() as options:
            try:
                measured.payload["runs"][label] = _timed(model, device, dry, **options)
            except Exception as error:
                if not label.startswith(THEIRS):
                    raise
                said = next(iter(str(error).splitlines()), "")
                measured.payload["refused"][label] = f"{type(error).__name__}: {said}"[:300]
        if label in measured.payload["refused"]:
            print(f"{label}: refused, {measured.payload['refused'][label]}", flush=True)
    for label in measured.payload["not_run"]:
        print(f"{label}: not reached", flush=True)
    torch.compiler.reset()


Context = Callable[[], contextlib.AbstractContextManager[dict]]
#: Whose contenders may refuse a model.
THEIRS = ("diffusers ", "cache-dit")


def contenders(model: Model, dry: bool) -> dict[str, Context]:
    """By label, in the order of their worth, a context in which the pipeline is run that way; it gives what ``_timed``
    is to know."""
    forecast = vaccel.Forecast.shaped(model.steps, model.computed)
    found: dict[str, Context] = {
        "full": lambda: contextlib.nullcontext({}),
        "vaccel Forecast": lambda: _ours(model, forecast),
        "full, compiled blocks": lambda: _compiled(model, dry),
        "diffusers MagCache": lambda: _theirs(model, _mag(model)),
        "diffusers TaylorSeer": lambda: _theirs(model, _taylor()),
        "diffusers FirstBlockCache, all but the first": lambda: _theirs(model, _first_block()),
    }
    if not isinstance(model.pipe, FluxPipeline):  # which does not tell it the step: it would compute all of them
        found["diffusers SeaCache, two of three"] = lambda: _theirs(model, _sea())
    with contextlib.suppress(ImportError):
        import cache_dit  # noqa: F401

        found["cache-dit, static mask"] = lambda: _cache_dit(model)
    found["vaccel Forecast, compiled blocks"] = lambda: _compiled(model, dry, forecast)
    found["vaccel Schedule"] = lambda: _ours(model, _schedule(model))
    if not dry:
        found["vaccel Forecast, cuda graphs"] = lambda: _ours(model, forecast, cuda_graphs=True)
        found["vaccel Schedule, cuda graphs"] = lambda: _ours(model, _schedule(model), cuda_graphs=True)
        found["vaccel Forecast, compiled blocks, cuda graphs"] = lambda: _compiled(
            model, dry, forecast, cuda_graphs=True
        )
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
    transformer = model.pipe.transformer
    with contextlib.ExitStack() as stack:
        stack.callback(_hooks_off, transformer)
        yield {"prepare": lambda: transformer.enable_cache(config)}


def _hooks_off(transformer: Any) -> None:
    """No cache any more, of one that was only half put on before it refused neither."""
    with contextlib.suppress(Exception):
        transformer.disable_cache()
    transformer._cache_config = None
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name in list(registry.hooks) if registry is not None else []:
            registry.remove_hook(name, recurse=False)


def _taylor() -> Any:
    from diffusers import TaylorSeerCacheConfig

    # The first two, every third after it: 18 of 50.  Without lite mode only attention is predicted.
    return TaylorSeerCacheConfig(3, 2, max_order=1, use_lite_mode=True)


def _mag(model: Model) -> Any:
    from diffusers import MagCacheConfig

    return MagCacheConfig(0.5, 2, 0.0, num_inference_steps=model.steps, mag_ratios=torch.ones(model.steps))


def _sea() -> Any:
    from diffusers import SeaCacheConfig

    return SeaCacheConfig(1e9, max_consecutive_cached=2)


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
    with _put_back(model.pipe):
        try:
            yield {"prepare": lambda: cache_dit.enable_cache(model.pipe, cache_config=config)}
        finally:
            with contextlib.suppress(Exception):  # where it was refused there is nothing to take off
                cache_dit.disable_cache(model.pipe)


@contextlib.contextmanager
def _put_back(pipe: Any) -> Iterator[None]:
    """The attributes of the pipeline and its denoiser as they were, whatever was patched: cache-dit leaves the forward
    that it gives some models (LTX-2) on them for good."""
    before = [(thing, dict(vars(thing))) for thing in (pipe, *pipe.transformer.modules())]
    call = type(pipe).__call__
    try:
        yield
    finally:
        for thing, attributes in before:
            vars(thing).clear()
            vars(thing).update(attributes)
        type(pipe).__call__ = call


@contextlib.contextmanager
def _compiled(model: Model, dry: bool, method: Any = None, **options: Any) -> Iterator[dict[str, Any]]:
    """The repeated blocks compiled in place, for so long; a dry run follows them and compiles nothing."""
    model.pipe.transformer.compile_repeated_blocks(fullgraph=True, **({"backend": "eager"} if dry else {}))
    try:
        if method is None:
            yield {}
        else:
            with _ours(model, method, **options) as found:
                yield found
    finally:
        for module in model.pipe.transformer.modules():
            module._compiled_call_impl = None


def _timed(
    model: Model, device: str, dry: bool, handle: Any = None, prepare: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """A warm-up, then a run: seconds, the dearest and cheapest steps; what a handle says of it."""
    steps = model.steps
    prepare()
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
