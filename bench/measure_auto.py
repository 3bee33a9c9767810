"""Where Forecast is hard, and what Auto promises: ``python bench/measure_auto.py settings|ood|auto|memory``.

``settings``: other solvers, guidance scales and kinds of prediction, each calibrated with two captions.  ``ood``:
prompts and a resolution outside the training distribution, with the guard and without.  ``auto``: the speed delivered,
the share of prompts that reach a PSNR.  ``memory``: bytes held.  Each writes its JSON under bench/results/cpu.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import results
import torch
import typer
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput

import vaccel
from vaccel import demo
from vaccel.calibrate import calibrate_forecast
from vaccel.demo.family import calibration_captions
from vaccel.demo.shapes import held_out_captions
from vaccel.evaluate import metrics

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
Prompts = Annotated[int, typer.Option(help="Held-out captions.")]
SHIPPED = demo.family.shipped_folder() / "forecast.json"
SETTINGS = ("UniPC", "Euler", "DPM++", "guidance 1", "guidance 7", "DDIM, v_prediction", "DDIM, epsilon")
STEPS, BUDGETS = 50, (27, 17, 9)
OOD_PROMPTS = (
    "a dog runs over a field",
    "red red red red",
    "",
    "two green triangles spin on a striped background",
    "a white circle moves left",
    "a blue square moves up quickly on a dark background and then down slowly",
    "on a dotted background",
    "a purple circle moves left slowly and a purple cross moves right slowly and a red square moves up quickly",
)


class Bench:
    """A pipeline with what it is called with."""

    def __init__(self, **call: Any):
        self.family = demo.load()
        self.pipe = self.family.pipe
        self.call = {**self.family.call, "num_inference_steps": STEPS, **call}

    def clip(self, prompt: str, **call: Any) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        frames = self.pipe(prompt, generator=generator, output_type="np", **{**self.call, **call}).frames
        return np.asarray(frames[0], dtype=np.float32)

    def under(self, method: vaccel.Method, prompts: list[str], full: list[np.ndarray]) -> dict[str, Any]:
        """PSNR, its worst, and the steps computed."""
        with vaccel.accelerate(self.pipe, method) as handle:
            psnr, steps = [], []
            for prompt, reference in zip(prompts, full, strict=True):
                psnr.append(min(metrics.psnr(reference, self.clip(prompt)), 100.0))
                steps.append(handle.trace.timeline().count("F"))
        return _stated(psnr) | {"steps": statistics.fmean(steps)}

    def fewer(self, count: int, prompts: list[str], full: list[np.ndarray]) -> dict[str, Any]:
        clips = [self.clip(prompt, num_inference_steps=count) for prompt in prompts]
        return _stated([min(metrics.psnr(a, b), 100.0) for a, b in zip(full, clips, strict=True)]) | {"steps": count}


def _stated(psnr: list[float]) -> dict[str, Any]:
    return {"psnr": statistics.fmean(psnr), "psnr_worst": min(psnr), "each": [round(p, 2) for p in psnr]}


class Predicting(WanTransformer3DModel):
    """The family's flow model as a model of a variance-preserving diffusion that predicts v or the noise.

    The state x of the diffusion, over alpha + sigma, is the flow's at the level s = sigma / (alpha + sigma), and the
    flow's velocity u is the same thing in other words: v = (u - (sigma - alpha) x) / (alpha + sigma), and so on.
    """

    def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict=True, **kwargs):
        cumulative = self.cumulative[timestep.long()].to(hidden_states).view(-1, 1, 1, 1, 1)
        alpha, sigma = cumulative.sqrt(), (1 - cumulative).sqrt()
        level = (sigma / (alpha + sigma)).flatten()
        flow = hidden_states / (alpha + sigma)
        u = super().forward(flow, 1000 * level, encoder_hidden_states, return_dict=False, **kwargs)[0]
        if self.kind == "v_prediction":
            out = (u - (sigma - alpha) * hidden_states) / (alpha + sigma)
        else:
            out = (u + hidden_states / alpha) / (1 + sigma / alpha)
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)


Predicting.__name__ = "WanTransformer3DModel"  # the class its family is known by


class Diffusion(DDIMScheduler):
    """DDIM, with what Wan's pipeline asks of a scheduler."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """It keeps no index."""

    @property
    def sigmas(self) -> torch.Tensor:
        """The pipeline tells caches of other libraries the noise of a step; nothing here reads it."""
        return torch.cat([self.timesteps / 1000, torch.zeros(1)])


def _diffusion(bench: Bench, kind: str) -> None:
    scheduler = Diffusion(prediction_type=kind, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=True, timestep_spacing="trailing")  # fmt: skip
    bench.pipe.scheduler = scheduler
    model = bench.pipe.transformer
    model.__class__ = Predicting
    model.kind, model.cumulative = kind, scheduler.alphas_cumprod


def _solver(bench: Bench, name: str) -> None:
    if name == "Euler":
        bench.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    elif name == "DPM++":
        bench.pipe.scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
        )
    elif name.startswith("DDIM"):
        _diffusion(bench, name.split(", ")[1])


def _settings(only: list[str] | None) -> Iterator[tuple[str, Bench]]:
    for name in only or SETTINGS:
        bench = Bench(**({"guidance_scale": float(name.split()[1])} if name.startswith("guidance") else {}))
        _solver(bench, name)
        yield name, bench


@app.command()
def settings(
    prompts: Prompts = 8,
    threads: int = 1,
    only: Annotated[list[str] | None, typer.Option(help="A setting; may be given again.")] = None,
    log: Annotated[Path, typer.Option(help="One JSON line a row.")] = Path("out/forecast_settings.jsonl"),
) -> None:
    """Other solvers, guidance scales and kinds of prediction, two captions each to calibrate."""
    torch.set_num_threads(threads)
    captions = held_out_captions(prompts)
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, bench) in enumerate(_settings(only)):
            path, began = Path(folder) / f"{number}.json", time.perf_counter()
            calibrate_forecast(bench.pipe, calibration_captions(2), path, call=bench.call, trials=())
            seconds = time.perf_counter() - began
            full = [bench.clip(caption) for caption in captions]
            for budget in BUDGETS:
                row = {"setting": name, "budget": budget, "calibration_seconds": seconds}
                row["Forecast"] = bench.under(vaccel.Forecast.load(path, budget), captions, full)
                row["without calibration"] = bench.under(vaccel.Forecast.shaped(STEPS, budget), captions, full)
                row["fewer steps"] = bench.fewer(budget, captions, full)
                with log.open("a") as f:
                    f.write(json.dumps(row) + "\n")
                print(name, budget, {k: round(v["psnr"], 1) for k, v in row.items() if isinstance(v, dict)}, flush=True)
    write_settings(log)


@app.command()
def write_settings(log: Path = Path("out/forecast_settings.jsonl")) -> None:
    """The JSON of what the log holds."""
    table = [json.loads(line) for line in log.read_text().splitlines()]
    print(results.write("forecast_settings", {"table": table}, command="measure_auto.py settings"))


@app.command()
def ood(artifact: Path = SHIPPED, threads: int = 1) -> None:
    """Prompts outside the grammar, and 64 x 64 pixels instead of 48 x 48, with the guard and without."""
    torch.set_num_threads(threads)
    table = []
    for name, bench, prompts in (
        ("held-out captions", Bench(), held_out_captions(len(OOD_PROMPTS))),
        ("outside the grammar", Bench(), list(OOD_PROMPTS)),
        ("64 x 64 pixels", Bench(height=64, width=64), held_out_captions(4)),
    ):
        full = [bench.clip(prompt) for prompt in prompts]
        for budget in BUDGETS:
            row: dict[str, Any] = {"prompts": name, "budget": budget}
            for guard in (None, 2.0):
                method = vaccel.Forecast.load(artifact, budget, guard=guard)
                row["no guard" if guard is None else f"guard {guard:g}"] = bench.under(method, prompts, full)
            row["without calibration"] = bench.under(vaccel.Forecast.shaped(STEPS, budget), prompts, full)
            row["fewer steps"] = bench.fewer(budget, prompts, full)
            table.append(row)
            print(name, budget, {k: (round(v["psnr"], 1), round(v["psnr_worst"], 1), v["steps"])
                                 for k, v in row.items() if isinstance(v, dict)}, flush=True)  # fmt: skip
    print(results.write("forecast_ood", {"table": table}, command="measure_auto.py ood"))


@app.command()
def auto(artifact: Path = SHIPPED, prompts: Prompts = 16, rounds: int = 8, threads: int = 1) -> None:
    """Delivered speedups, every accelerated call beside a full one; and who reaches a PSNR."""
    torch.set_num_threads(threads)
    bench, captions = Bench(), held_out_captions(prompts)
    speeds, fidelities = [], []
    with tempfile.TemporaryDirectory() as folder:
        for how in ("calibrated", "learnt"):
            for speed in (1.5, 2.0, 3.0, 4.0) if how == "calibrated" else (2.5,):
                known = {"artifacts": (str(artifact),)} if how == "calibrated" else {"learn": 1}
                speeds.append(_delivered(bench, vaccel.Auto(speedup=speed, folder=folder, **known), captions, rounds))
                speeds[-1] |= {"asked": speed, "how": how}
                print({k: v for k, v in speeds[-1].items() if k != "pairs"}, flush=True)
        full = [bench.clip(caption) for caption in captions]
        for psnr in (35.0, 40.0, 45.0, 50.0):
            method = vaccel.Auto(psnr=psnr, artifacts=(str(artifact),), folder=folder)
            found = bench.under(method, captions, full)
            fidelities.append({"asked": psnr, **found, "reached": statistics.fmean(p >= psnr for p in found["each"])})
            print({k: v for k, v in fidelities[-1].items() if k != "each"}, flush=True)
    payload = {"speed": speeds, "fidelity": fidelities, "threads": threads}
    print(results.write("auto", payload, command="measure_auto.py auto"))


def _delivered(bench: Bench, method: vaccel.Auto, captions: list[str], rounds: int) -> dict[str, Any]:
    """Calls in full and under ``method``, one after the other; the run that teaches is left out."""
    pairs, budgets = [], []
    for number in range(rounds + (method.learn > 0)):
        caption = captions[number % len(captions)]
        began = time.perf_counter()
        bench.clip(caption)
        middle = time.perf_counter()
        with vaccel.accelerate(bench.pipe, method) as handle:
            started = time.perf_counter()
            bench.clip(caption)
            ended = time.perf_counter()
            computed = handle.trace.timeline().count("F")
        if computed < STEPS:
            pairs.append([middle - began, ended - started])
            budgets.append(computed)
    ratios = sorted(a / b for a, b in pairs)
    low, median, high = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return {"delivered": median, "quartiles": [low, high], "budgets": budgets, "pairs": pairs}


@app.command()
def memory(threads: int = 1) -> None:
    """Bytes held beside cache-dit's on the demo family, and computed for Wan-14B at 480p and 720p."""
    torch.set_num_threads(threads)
    bench, rows = Bench(num_inference_steps=12), []
    caption = held_out_captions(1)[0]
    for name, method in (
        ("Forecast", vaccel.Forecast.shaped(12, 4)),
        ("LeMiCa, blocks", vaccel.Schedule(vaccel.Forecast.shaped(12, 4).full_steps, num_steps=12)),
    ):
        with vaccel.accelerate(bench.pipe, method) as handle:
            bench.clip(caption)
            rows.append({"method": name, "bytes": handle.nbytes})
    rows.append({"method": "cache-dit DBCache F1B0", "bytes": _cache_dit(bench, caption)})
    large = []
    for name, height, width in (("480p", 480, 832), ("720p", 720, 1280)):
        latents = 16 * 21 * (height // 8) * (width // 8)
        hidden = 21 * (height // 16) * (width // 16) * 5120
        large.append({
            "size": name, "Forecast": 3 * 2 * latents * 2,  # three velocities of two branches in bf16
            "recording": 50 * latents * 4,
            "hidden_states_tensor": hidden * 2, "block_residuals": 2 * hidden * 2,
        })  # fmt: skip
    for row in [*rows, *large]:
        print(row)
    print(results.write("forecast_memory", {"demo": rows, "wan_14b": large}, command="measure_auto.py memory"))


def _cache_dit(bench: Bench, caption: str) -> int:
    """Bytes of the tensors that a run under cache-dit leaves alive, beyond those before it."""
    import cache_dit

    def alive() -> dict[int, int]:
        gc.collect()
        found = (o for o in gc.get_objects() if isinstance(o, torch.Tensor) and not isinstance(o, torch.nn.Parameter))
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}

    bench.clip(caption)
    before = alive()
    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=0.1)
    cache_dit.enable_cache(bench.pipe, cache_config=config)
    try:
        bench.clip(caption)
        after = alive()
    finally:
        cache_dit.disable_cache(bench.pipe)
    return sum(size for address, size in after.items() if address not in before)


if __name__ == "__main__":
    app()
