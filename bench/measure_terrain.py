"""Forecast on a pretrained denoiser that nobody here made: ``python bench/measure_terrain.py measure``.

The U-Net of PyPI's ``adaptive-terrain-diffusion`` (a consistency model; ``pip install onnxruntime`` and ``pip install
--no-deps adaptive-terrain-diffusion==0.4.2``, whose own wish is the GPU's onnxruntime) read as the denoiser that it
also is: x_0 from x_0 + sigma eps.  Fifty Karras levels from sigma 80
to 0.002, Euler in flow coordinates, as a hand-written loop over a ``vaccel.Denoiser``, recorded by
``vaccel.calibrate.record`` on six terrains and compared on six others.  dB of the finished terrain to the full run, of
heights as the model has them, from 0 to 1.  Writes bench/results/cpu/terrain.json and, with --sheet, a picture.
"""

from __future__ import annotations

import importlib.resources
import math
import statistics
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import results
import torch
import typer

import vaccel
from vaccel.methods.forecast import _shaped
from vaccel.planning.flow import Flow

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
OUT = Path("out/terrain")
SIZE, LOW, HIGH, RHO = 128, 0.002, 80.0, 7.0
STEPS, BUDGETS = 50, (9, 13, 17, 22)
SAMPLES = 6
#: (seed, difficulty of 1 to 100) of those recorded and of those compared.
RECORDED = [(100 + k, 1 + 19 * k) for k in range(SAMPLES)]
COMPARED = [(k, 8 + 17 * k) for k in range(SAMPLES)]


def karras(steps: int) -> Flow:
    """Levels sigma / (1 + sigma) of ``steps`` Karras sigmas, and 0."""
    ramp = np.linspace(0, 1, steps)
    sigmas = (HIGH ** (1 / RHO) + ramp * (LOW ** (1 / RHO) - HIGH ** (1 / RHO))) ** RHO
    return Flow.euler([*(sigmas / (1 + sigmas)), 0.0])


def velocity(x: np.ndarray, denoised: np.ndarray, sigma: float) -> np.ndarray:
    """u = eps - x_0 of the flow (1 - s) x_0 + s eps, from x = x_0 + sigma eps and the denoiser's x_0."""
    return (x - denoised) / sigma - denoised


class Terrain:
    """The pretrained model as a callable (x, s, difficulty) -> u on flow states [1, 1, H, W]."""

    def __init__(self, threads: int):
        import onnxruntime

        weights = importlib.resources.files("terrain_diffusion") / "weights/terrain_consistency_unet_difficulty100.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])

    def __call__(self, x: torch.Tensor, s: float, difficulty: float) -> torch.Tensor:
        sigma = s / (1 - s)
        noisy = (x * (1 + sigma)).numpy().astype(np.float32)
        feeds = {
            "noisy": noisy, "sigma": np.full(len(x), sigma, np.float32),
            "difficulty": np.full(len(x), difficulty, np.float32),
        }  # fmt: skip
        (denoised,) = self.session.run(["denoised"], feeds)
        return torch.from_numpy(velocity(noisy, denoised, sigma))


def generate(denoiser: vaccel.Denoiser, flow: Flow, seed: int, difficulty: int) -> torch.Tensor:
    """A terrain [1, 1, H, W], heights from 0 to 1: a loop as a user writes it."""
    x = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * flow.levels[0]
    with denoiser.run(flow.num_steps, flow=flow) as run:
        for i, (s, following) in enumerate(zip(flow.levels, flow.levels[1:], strict=False)):
            x = x + (following - s) * run.step(i, s, x, (difficulty - 1) / 99)
    return ((x + 1) / 2).clamp(0, 1).double()


def even_in_level(levels: tuple[float, ...], budget: int) -> tuple[int, ...]:
    """The steps nearest to evenly spaced levels, none twice, the first and the last among them."""
    wanted = np.linspace(levels[0], levels[-2], budget)
    found: list[int] = []
    for k, level in enumerate(wanted):
        free = range(found[-1] + 1 if found else 0, len(levels) - 1 - (budget - 1 - k))
        found.append(min(free, key=lambda i, level=level: abs(levels[i] - level)))
    return tuple(found)


def methods(artifact: Path, flow: Flow, budget: int) -> dict[str, vaccel.Method]:
    even = tuple(round(k * (STEPS - 1) / (budget - 1)) for k in range(budget))
    return {
        "shaped by index": vaccel.Forecast(_shaped(STEPS, budget), STEPS),
        "evenly spaced": vaccel.Forecast(even, STEPS),
        "even in level": vaccel.Forecast(even_in_level(flow.levels, budget), STEPS),
        "straight line by the prior": vaccel.Forecast.shaped(STEPS, budget),
        "prior": vaccel.Forecast.prior(budget),
        "calibrated, no corrections": vaccel.Forecast.load(artifact, budget, correct=False),
        "calibrated": vaccel.Forecast.load(artifact, budget),
    }


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-12))


@app.command()
def measure(
    sheet: Annotated[bool, typer.Option("--sheet", help="Also write out/terrain/sheet.png.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of onnxruntime and torch.")] = 1,
) -> None:
    """Records, compares and writes the JSON."""
    torch.set_num_threads(threads)
    OUT.mkdir(parents=True, exist_ok=True)
    flow, artifact = karras(STEPS), OUT / "forecast.json"
    denoiser = vaccel.Denoiser(Terrain(threads), method=vaccel.Forecast.prior(STEPS))
    artifact.unlink(missing_ok=True)
    with vaccel.calibrate.record(denoiser, artifact):
        for seed, difficulty in RECORDED:
            generate(denoiser, flow, seed, difficulty)
    denoiser.method = vaccel.Schedule(range(STEPS), num_steps=STEPS, reuse="output")
    full = [generate(denoiser, flow, *which) for which in COMPARED]
    rows, pictures = [], {"full": full}
    for budget in BUDGETS:
        found: dict[str, Any] = {}
        denoiser.method = vaccel.Schedule(range(budget), num_steps=budget, reuse="output")
        made = {"fewer steps": [generate(denoiser, karras(budget), *which) for which in COMPARED]}
        for name, method in methods(artifact, flow, budget).items():
            denoiser.method = method
            made[name] = [generate(denoiser, flow, *which) for which in COMPARED]
        for name, clips in made.items():
            each = [psnr(a, b) for a, b in zip(clips, full, strict=True)]
            found[name] = (round(statistics.fmean(each), 2), round(min(each), 2))
        pictures |= {f"{name}, {budget}": clips for name, clips in made.items() if budget == 13}
        rows.append({"budget": budget, "psnr": found})
        print(budget, "  ".join(f"{n} {m:.1f} ({w:.1f})" for n, (m, w) in found.items()), flush=True)
    results.write("terrain", {"rows": rows, "recorded": RECORDED, "compared": COMPARED, "steps": STEPS})
    if sheet:
        draw(pictures)


def draw(pictures: dict[str, list[torch.Tensor]]) -> None:
    """A row a method, a column a terrain."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(pictures), SAMPLES, figsize=(2 * SAMPLES, 2.1 * len(pictures)), squeeze=False)
    for row, (name, clips) in zip(axes, pictures.items(), strict=True):
        for axis, clip in zip(row, clips, strict=True):
            axis.imshow(clip[0, 0], cmap="terrain", vmin=0, vmax=1)
            axis.set_axis_off()
        row[0].set_title(name, fontsize=8, loc="left")
    figure.tight_layout()
    figure.savefig(OUT / "sheet.png", dpi=70)


@app.callback()
def _main() -> None:
    """A group, so that the command is named."""


if __name__ == "__main__":
    app()
