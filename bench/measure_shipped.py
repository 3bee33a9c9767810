"""Makes the Forecast calibrations that ship: ``python bench/measure_shipped.py shapes --captions 40``, ``glyphs``.

On captions of the training side, each from a noise of its own; error growth on the first eight of them.  Stopped, it
goes on where it was.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from measure_levels import Bench, scheduler
from measure_unet import captions_to_calibrate

from vaccel.calibrate import calibrate_forecast
from vaccel.demo import family
from vaccel.planning import artifacts

STEPS, TAIL_SAMPLES = 50, 8


def main(
    name: Annotated[str, typer.Argument(help="shapes or glyphs.")],
    captions: Annotated[int, typer.Option(help="Training captions.")] = 80,
    out: Annotated[
        Path | None, typer.Option(help="The artifact; by default the shipped one, once it is whole.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Calibrates a family and puts the artifact in its place."""
    torch.set_num_threads(threads)
    bench = Bench(name, 1)
    bench.pipe.scheduler = scheduler("unipc" if name == "shapes" else "ddim", 3.0)
    prompts = family.calibration_captions(captions) if name == "shapes" else captions_to_calibrate(captions)
    began, told = time.perf_counter(), [0.0]

    def progress(done: float, total: float, what: str) -> None:
        if done / total >= told[0]:
            print(f"{done / total:.0%} after {time.perf_counter() - began:.0f} s: {what}", flush=True)
            told[0] += 0.05

    made = out or Path("out") / f"shipped_{name}.json"
    made.parent.mkdir(parents=True, exist_ok=True)
    call = {**bench.call, "num_inference_steps": STEPS}
    data = calibrate_forecast(bench.pipe, prompts, made, call=call, tail_samples=TAIL_SAMPLES, progress=progress)
    if out is None:
        artifacts.replace(bench.artifact, data)
    print(f"{out or bench.artifact}: {len(data['samples'])} samples")


if __name__ == "__main__":
    typer.run(main)
