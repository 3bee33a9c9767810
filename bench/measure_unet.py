"""Every method that works on a U-Net, on the glyph family: ``python bench/measure_unet.py measure`` and ``small``.

Stable Diffusion's pipeline with DDIM, 50 steps, guidance 4, held-out captions; calibrations are made on captions of the
training side.  Budgets count computed steps; thresholds are fitted on two captions of the training side.  Rivals:
fewer solver steps, DeepCache (PyPI; its skipped steps still compute the outermost blocks, whose share of a forward's
time is measured and counted), and diffusers' own caches where they accept a U-Net.  The other two schedulers are
measured at two budgets.  Writes bench/results/<device>/unet.json.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import results
import torch
import typer
from skimage.metrics import structural_similarity

import vaccel
from vaccel.calibrate import calibrate_forecast, calibrate_lemica
from vaccel.calibrate.samples import sample
from vaccel.demo import glyphs, image_family
from vaccel.methods import Method

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
STEPS, BUDGETS, FEW = 50, (9, 13, 17, 22, 27), (9, 17)
OUT = Path("out/unet_calibrations")


@app.callback()
def _main() -> None:
    """A group, so that the command is named."""


def captions_to_calibrate(count: int) -> list[str]:
    generator = torch.Generator().manual_seed(77)
    return [glyphs.draw_scene(generator, held_out=False).caption for _ in range(count)]


class Bench:
    """The pipeline with one scheduler, its full runs, and what is measured against them."""

    def __init__(self, scheduler: str, captions: list[str]):
        family = image_family.load()
        self.pipe, self.small, self.name = family.pipe, family.small, scheduler
        self.pipe.scheduler = image_family.build_scheduler(scheduler)
        self.call = {**family.call, "num_inference_steps": STEPS}
        self.captions, self.training = captions, captions_to_calibrate(8)
        self.full = {c: self.image(c, n) for n, c in enumerate(captions)}

    def image(self, caption: str, seed: int, **changes: Any) -> np.ndarray:
        made = sample(self.pipe, caption, seed, {**self.call, **changes}, output="pt")
        return made[0].permute(1, 2, 0).float().numpy()

    def row(self, name: str, run: Callable[[str, int], tuple[np.ndarray, float]]) -> dict[str, Any]:
        """PSNR and SSIM to the full run, computed steps, seconds a call: of every caption."""
        psnr, ssim, cost, seconds = [], [], [], []
        for n, caption in enumerate(self.captions):
            began = time.perf_counter()
            image, steps = run(caption, n)
            seconds.append(time.perf_counter() - began)
            full = self.full[caption]
            psnr.append(-10 * np.log10(max(float(((image - full) ** 2).mean()), 1e-12)))
            ssim.append(float(structural_similarity(image, full, data_range=1.0, channel_axis=-1)))
            cost.append(steps)
        found = {
            "scheduler": self.name, "method": name, "steps": statistics.mean(cost), "psnr": statistics.mean(psnr),
            "psnr_worst": min(psnr), "ssim": statistics.mean(ssim), "seconds": statistics.median(seconds),
        }  # fmt: skip
        told = f"{found['psnr']:5.1f} dB (worst {found['psnr_worst']:4.1f})  SSIM {found['ssim']:.4f}"
        print(f"{self.name:8} {name:28} {found['steps']:5.1f} steps  {told}  {found['seconds']:.2f} s", flush=True)
        return found

    def method(self, name: str, method: Method) -> dict[str, Any]:
        with warnings.catch_warnings(), vaccel.accelerate(self.pipe, method) as handle:
            warnings.simplefilter("ignore")

            def run(caption: str, seed: int) -> tuple[np.ndarray, float]:
                image = self.image(caption, seed)
                return image, handle.trace.calls["large"] / 2  # both branches are in one call

            return self.row(name, run)

    def cost(self, method: Method) -> float:
        """Computed steps on two captions of the training side."""
        with warnings.catch_warnings(), vaccel.accelerate(self.pipe, method) as handle:
            warnings.simplefilter("ignore")
            counts = []
            for n, caption in enumerate(self.training[:2]):
                self.image(caption, 500 + n)
                counts.append(handle.trace.calls["large"] / 2)
        return statistics.mean(counts)

    def fitted(self, make: Callable[[float], Method], budget: int, low: float, high: float) -> Method:
        """The threshold whose runs compute about so many steps: bisected on a logarithmic scale."""
        for _ in range(9):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self.cost(make(middle)) > budget else (low, middle)
        return make((low * high) ** 0.5)


def our_methods(bench: Bench, budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    OUT.mkdir(parents=True, exist_ok=True)
    forecast = OUT / f"forecast_{bench.name}.json"
    calibrate_forecast(bench.pipe, bench.training, forecast, call=bench.call, trials=(0.18, 0.34, 0.54))
    rows = []
    for budget in budgets:
        rows.append(bench.method(f"Forecast {budget}", vaccel.Forecast.load(forecast, budget)))
        rows.append(bench.method(f"Forecast uncalibrated {budget}", vaccel.Forecast.shaped(STEPS, budget)))
        even = sorted({round(k * (STEPS - 1) / (budget - 1)) for k in range(budget)})
        rows.append(bench.method(f"Schedule residual {budget}", vaccel.Schedule(even, num_steps=STEPS)))
        easy = bench.fitted(lambda tau: vaccel.EasyCache(threshold=tau, warmup=4), budget, 1e-3, 30.0)
        rows.append(bench.method(f"EasyCache {budget}", easy))
        rows.append(
            bench.row(f"fewer steps {budget}", lambda c, n, b=budget: (bench.image(c, n, num_inference_steps=b), b))
        )
    return rows


def lemica_and_mixcache(bench: Bench) -> list[dict[str, Any]]:
    path = OUT / f"lemica_{bench.name}.json"
    calibrate_lemica(bench.pipe, bench.training[:1], path, call=bench.call, reuse="residual")
    rows = [bench.method(f"LeMiCa {budget}", vaccel.LeMiCa.load(path, budget)) for budget in BUDGETS]
    for interval in (2, 3, 4, 5):
        mix = vaccel.MixCache(theta=0.3, interval=interval, levels=("step", "cfg"))
        rows.append(bench.method(f"MixCache interval {interval}", mix))
    return rows


@contextlib.contextmanager
def deep_cache(pipe: Any, interval: int) -> Iterator[None]:
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


def rivals(bench: Bench) -> tuple[list[dict[str, Any]], dict[str, str]]:
    rows: list[dict[str, Any]] = []
    said: dict[str, str] = {}
    times = {}
    try:
        for interval in (1, 1000):  # all in full; all but the first one skipped
            with deep_cache(bench.pipe, interval):
                began = time.perf_counter()
                for _ in range(3):
                    bench.image(bench.training[0], 1)
                times[interval] = time.perf_counter() - began
        share = times[1000] / times[1]
        said["DeepCache"] = f"a skipped step takes {share:.2f} of a computed one's time"
        for interval in (2, 3, 4, 5, 8):
            full = -(-STEPS // interval)
            with deep_cache(bench.pipe, interval):
                cost = full + share * (STEPS - full)
                rows.append(bench.row(f"DeepCache {interval}", lambda c, n, k=cost: (bench.image(c, n), k)))
    except Exception as error:
        said["DeepCache"] = f"fails here: {type(error).__name__}: {error}"
    return rows, said | diffusers_caches(bench)


def diffusers_caches(bench: Bench) -> dict[str, str]:
    """What diffusers' own caches make of a U-Net."""
    import diffusers.hooks as hooks

    settings = {
        "FirstBlockCache": lambda m: hooks.apply_first_block_cache(m, hooks.FirstBlockCacheConfig(threshold=0.1)),
        "MagCache": lambda m: hooks.apply_mag_cache(
            m, hooks.MagCacheConfig(mag_ratios=[1.0] * STEPS, num_inference_steps=STEPS)
        ),
        "TaylorSeer": lambda m: hooks.apply_taylorseer_cache(m, hooks.TaylorSeerCacheConfig(cache_interval=3)),
    }
    said = {}
    for name, apply in settings.items():
        fresh, caption = Bench(bench.name, bench.captions[:1]), bench.captions[0]
        try:
            apply(fresh.pipe.unet)
            began = time.perf_counter()
            image = fresh.image(caption, 0)
            took = time.perf_counter() - began
            same = np.array_equal(image, fresh.full[caption])
            said[name] = "accepts it and changes nothing" if same else f"accepts it: {took:.2f} s a call"
        except Exception as error:
            said[name] = f"does not: {type(error).__name__}: {str(error)[:120]}"
    return said


def two_models(bench: Bench) -> tuple[list[dict[str, Any]], float]:
    """The methods that also run a small model, by threshold, and its forward's share of the large one's time."""
    large, times = bench.pipe.unet, {}
    for name, unet in (("large", large), ("small", bench.small), ("again", large)):
        bench.pipe.unet = unet
        bench.image(bench.training[0], 1)  # warms up
        began = time.perf_counter()
        for n, caption in enumerate(bench.training[:3]):
            bench.image(caption, n)
        times[name] = time.perf_counter() - began
    share = 2 * times["small"] / (times["large"] + times["again"])
    bench.pipe.unet, rows = bench.small, []
    rows.append(bench.row("the small U-Net alone", lambda c, n: (bench.image(c, n), share * STEPS)))
    bench.pipe.unet = large
    methods = {f"DirectionMagnitude {tau}": vaccel.DirectionMagnitude(tau) for tau in (0.001, 0.002, 0.005, 0.01)}
    methods |= {f"SRDiffusion {tau}": vaccel.SRDiffusion(tau) for tau in (0.002, 0.01, 0.03)}
    for name, method in methods.items():
        with warnings.catch_warnings(), vaccel.accelerate(bench.pipe, method, small=bench.small) as handle:
            warnings.simplefilter("ignore")

            def run(caption: str, seed: int, handle: Any = handle) -> tuple[np.ndarray, float]:
                image, calls = bench.image(caption, seed), handle.trace.calls
                return image, (calls["large"] + share * calls["small"]) / 2

            rows.append(bench.row(name, run))
    for steps in (13, 17, 22, 27, 35):
        rows.append(
            bench.row(f"fewer steps {steps}", lambda c, n, b=steps: (bench.image(c, n, num_inference_steps=b), b))
        )
    return rows, share


@app.command()
def small(
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = 12,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Measures DirectionMagnitude and SRDiffusion beside the small U-Net alone and fewer steps; writes unet_small."""
    torch.set_num_threads(threads)
    captions = glyphs.held_out_captions(prompts)
    rows, share = two_models(Bench("ddim", captions))
    results.write("unet_small", {"rows": rows, "small_share": share, "prompts": captions, "steps": STEPS})


@app.command()
def measure(
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = 12,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Measures everything and writes the JSON."""
    torch.set_num_threads(threads)
    captions = glyphs.held_out_captions(prompts)
    bench = Bench("ddim", captions)
    began = time.perf_counter()
    for n, caption in enumerate(captions[:3]):
        bench.image(caption, n)
    full = (time.perf_counter() - began) / 3
    rows, said = rivals(bench)
    rows += our_methods(bench, BUDGETS)
    rows += lemica_and_mixcache(bench)
    for scheduler in ("euler-a", "dpm++"):
        rows += our_methods(Bench(scheduler, captions), FEW)
    results.write("unet", {"rows": rows, "rivals": said, "full_seconds": full, "prompts": captions, "steps": STEPS})


if __name__ == "__main__":
    app()
