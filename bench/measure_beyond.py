"""Forecast where a second transformer takes over, and where guidance pauses: ``python bench/measure_beyond.py``.

The trained moving shapes are split into two transformers at a boundary, the second with weights that are off by a share
of each tensor's spread (0 for a copy), guided by another scale.  Of every budget: histories that go on across the
boundary, and histories of each transformer alone, which cost further computed steps; both at equal computed steps.
Then a run whose guidance pauses in the middle: a branch that comes back is forecast from its own steps, or computed
until it has been computed at the steps of the other one.  PSNR in dB of the finished clips to the full run, on held-out
captions.  Writes bench/results/cpu/beyond.json; stopped, the same command goes on after the last setting.
"""

from __future__ import annotations

import contextlib
import copy
import json
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import results
import torch
import typer

import vaccel
from vaccel.cache import VelocityHistory
from vaccel.calibrate import calibrate_forecast
from vaccel.calibrate.samples import sample
from vaccel.demo import family, shapes
from vaccel.methods import forecast

OUT = Path("out/beyond")
STEPS = 50
#: (share by which the second transformer's weights are off, boundary, computed steps)
SETTINGS = [(off, boundary, (13, 17, 22)) for off in (0.0, 0.2) for boundary in (0.9, 0.5)]
#: Guided in steps before the first and from the second on.
PAUSE = (14, 34)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Within the context velocities are of one transformer alone, and of a branch only where it is like the other."""
    amended = forecast._Policy.amended
    VelocityHistory.crosses = False
    forecast._Policy.amended = lambda *_: None
    try:
        yield
    finally:
        VelocityHistory.crosses, forecast._Policy.amended = True, amended


class Bench:
    """The family's pipeline, and how its runs are compared."""

    def __init__(self, captions: int):
        loaded = family.load()
        self.pipe, self.call = loaded.pipe, {**loaded.call, "num_inference_steps": STEPS}
        self.artifact = loaded.folder / "forecast.json"
        self.training, self.held_out = family.calibration_captions(4), shapes.held_out_captions(captions)

    def clips(self, method: Any, call: dict[str, Any]) -> tuple[list[torch.Tensor], int, str]:
        """(a clip of every caption, transformer forwards of one, its timeline)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            handle = vaccel.accelerate(self.pipe, method) if method is not None else None
            made = [sample(self.pipe, c, n, call, output="pt") for n, c in enumerate(self.held_out)]
        if handle is None:
            return made, 2 * STEPS, ""
        trace = handle.trace
        handle.remove()
        return made, trace.calls["large"], trace.timeline()

    def row(self, full: list[torch.Tensor], method: Any, call: dict[str, Any]) -> dict[str, Any]:
        made, forwards, timeline = self.clips(method, call)
        errors = [float((a.double() - b.double()).square().mean()) for a, b in zip(made, full, strict=True)]
        found = [-10 * torch.log10(torch.tensor(max(e, 1e-12))).item() for e in errors]
        return {
            "psnr": [round(statistics.mean(found), 2), round(min(found), 2)],
            "forwards": forwards,
            "timeline": timeline,
        }

    def split(self, off: float, boundary: float, budgets: tuple[int, ...]) -> list[dict[str, Any]]:
        """The rows of a setting with two transformers."""
        second, draw = copy.deepcopy(self.pipe.transformer), torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in second.parameters():
                if p.numel() > 1:
                    p.add_(off * p.std() * torch.randn(p.shape, generator=draw))
        self.pipe.register_modules(transformer_2=second)
        self.pipe.register_to_config(boundary_ratio=boundary)
        call, rows = {**self.call, "guidance_scale_2": 3.0}, []
        made = OUT / f"two_{off:g}_{boundary:g}.json"
        calibrate_forecast(self.pipe, self.training, made, call=call, tails=6, tail_samples=2, trials=())
        full, *_ = self.clips(None, call)
        kinds: dict[str, Callable[[int], Any]] = {
            "calibrated": lambda b: vaccel.Forecast.load(made, b),
            "prior": vaccel.Forecast.prior,
        }
        for budget in budgets:
            for name, make in kinds.items():
                goes_on = self.row(full, make(budget), call)
                with apart():
                    alone = next(
                        row for b in range(budget, 1, -1)
                        if (row := self.row(full, make(b), call))["forwards"] <= goes_on["forwards"]
                    )  # fmt: skip
                told = {"off": off, "boundary": boundary, "budget": budget, "kind": name}
                rows.append({**told, "goes on": goes_on, "apart": alone})
                print(off, boundary, budget, name, goes_on["psnr"], alone["psnr"], alone["forwards"], flush=True)
        self.pipe.register_modules(transformer_2=None)
        self.pipe.register_to_config(boundary_ratio=None)
        return rows

    def paused(self) -> list[dict[str, Any]]:
        """The rows of guidance that pauses."""

        def interval(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            pipe._guidance_scale = 1.0 if PAUSE[0] <= i + 1 < PAUSE[1] else 4.0
            return kwargs

        call, rows = {**self.call, "callback_on_step_end": interval}, []
        full, *_ = self.clips(None, call)
        for budget in (13, 17, 22):
            method = vaccel.Forecast.load(self.artifact, budget, allow_mismatch=True)
            own = self.row(full, method, call)
            with apart():
                computed = self.row(full, method, call)
            rows.append({"budget": budget, "from its own steps": own, "computed": computed})
            print("paused", budget, own["psnr"], own["forwards"], computed["psnr"], computed["forwards"], flush=True)
        return rows


def main(captions: Annotated[int, typer.Option(help="Held-out captions.")] = 8) -> None:
    """Measures what is not in the results yet."""
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    kept = OUT / f"rows_{captions}.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    bench = Bench(captions)
    for setting in SETTINGS:
        name = f"off {setting[0]:g}, boundary {setting[1]:g}"
        if name not in found:
            found[name] = bench.split(*setting)
            kept.write_text(json.dumps(found))
    if "paused" not in found:
        found["paused"] = bench.paused()
        kept.write_text(json.dumps(found))
    rows = [row for name, some in found.items() if name != "paused" for row in some]
    results.write("beyond", {"steps": STEPS, "prompts": bench.held_out, "rows": rows, "paused": found["paused"]})


if __name__ == "__main__":
    typer.run(main)
