"""Makes the prior that ships (``vaccel/planning/prior.json``): ``python bench/measure_prior.py``.

The mean of both trained families' calibrations, and what runs of either family reach by the other one's alone, as a new
model's do by both: (predicted error, PSNR) of training captions at several budgets.  Stopped, it goes on where it was.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measure_levels import OUT, Bench, scheduler

import vaccel
from vaccel.calibrate.forecast import BUDGETS
from vaccel.calibrate.samples import runs_of, sample
from vaccel.demo import family, image_family
from vaccel.planning import artifacts, prior
from vaccel.planning.calibration import calibration

STEPS = 50
PRIOR = prior.shipped()


def curve_of(bench: Bench, others: Path, caption: str, seed: int) -> list[tuple[float, float]]:
    """(predicted error, PSNR in dB) of a caption's runs by the other family's prior."""
    call: dict[str, Any] = {**bench.call, "num_inference_steps": STEPS}
    full, found = sample(bench.pipe, caption, seed, call, output="pt").double(), []
    for share in BUDGETS:
        method = vaccel.Forecast.load(others, round(share * STEPS), per="tensor", allow_mismatch=True, adapt=True)
        with vaccel.accelerate(bench.pipe, method) as handle:
            made = sample(bench.pipe, caption, seed, call, output="pt").double()
            path = tuple(i for i, letter in enumerate(handle.trace.timeline()) if letter == "F")
        known = calibration(others).at(bench.levels)
        plan = known.plan(len(path), per="tensor")
        assert plan.full_steps == path
        error = max(float((made - full).square().mean()), 1e-12)
        found.append((plan.predicted, -10 * math.log10(error)))
    return found


def main(
    captions: Annotated[int, typer.Option(help="Training captions of each family.")] = 16,
    out: Annotated[Path, typer.Option(help="The prior's file.")] = PRIOR,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Runs both families by the other's prior and writes the prior of both."""
    torch.set_num_threads(threads)
    OUT.mkdir(parents=True, exist_ok=True)
    kept, curves = OUT / "prior_curves.json", []
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for name, solver in (("shapes", "unipc"), ("glyphs", "ddim")):
        bench = Bench(name, 1, training=captions)
        bench.pipe.scheduler = scheduler(solver, 3.0)
        others = bench.others_prior()
        bench.levels = calibration(bench.artifact).gram.levels
        for caption, seed in runs_of(bench.training, None):
            key = f"{name}: {caption}"
            if key not in done:
                done[key] = curve_of(bench, others, caption, seed)
                kept.write_text(json.dumps(done))
                print(key, [round(psnr, 1) for _, psnr in done[key]], flush=True)
            curves.append(done[key])
    families = (family.shipped_folder(), image_family.shipped_folder())
    known = [calibration(folder / "forecast.json") for folder in families]
    artifacts.replace(out, prior.combined(known, curves=curves))
    print(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
