"""Forecast at other noise levels than its calibration's: ``python bench/measure_levels.py shapes`` and ``glyphs``.

Of every setting (solver, T, shift) and budget: a calibration made for it, the shipped one of T = 50 read by level, the
prior without any calibration (and without the family in it), the path that was the default before levels were read,
and fewer steps of the solver.  PSNR in dB of the finished clip or picture to the full run, on held-out captions.
Writes bench/results/cpu/levels_<family>.json; stopped, the same command goes on after the last setting.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import results
import torch
import typer
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

import vaccel
from vaccel.calibrate import calibrate_forecast
from vaccel.calibrate.samples import sample
from vaccel.demo import family, glyphs, image_family, shapes
from vaccel.methods.forecast import _shaped
from vaccel.planning import artifacts, prior
from vaccel.planning.calibration import calibration

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
OUT = Path("out/levels")
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
#: (solver, T, shift, computed steps)
SHAPES = [
    ("unipc", 50, 3.0, (9, 13, 17)), ("unipc", 30, 3.0, (8, 10, 13)), ("unipc", 20, 3.0, (5, 7, 9)),
    ("unipc", 50, 8.0, (13, 17)), ("unipc", 40, 1.0, (10, 14)), ("euler", 40, 3.0, (10, 14)),
    ("euler", 30, 8.0, (8, 10)), ("dpm++", 40, 3.0, (10, 14)), ("heun", 20, 3.0, (11, 15)),
]  # fmt: skip
GLYPHS = [
    ("ddim", 50, 0.0, (9, 13, 17)), ("ddim", 30, 0.0, (8, 10)), ("ddim", 20, 0.0, (5, 7)),
    ("dpm++ karras", 50, 0.0, (13, 17)), ("dpm++ karras", 30, 0.0, (8, 10)), ("euler karras", 50, 0.0, (9, 13, 17)),
]  # fmt: skip


def scheduler(name: str, shift: float) -> Any:
    """A solver by its name here."""
    made: dict[str, Callable[[], Any]] = {
        "unipc": lambda: UniPCMultistepScheduler(**FLOW, flow_shift=shift),
        "dpm++": lambda: DPMSolverMultistepScheduler(**FLOW, flow_shift=shift),
        "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=shift),
        "heun": lambda: FlowMatchHeunDiscreteScheduler(shift=shift),
        "ddim": lambda: DDIMScheduler(**image_family.SCHEDULE, clip_sample=False, set_alpha_to_one=False),
        "dpm++ karras": lambda: image_family.build_scheduler("dpm++"),
        "euler karras": lambda: EulerDiscreteScheduler(**image_family.SCHEDULE, use_karras_sigmas=True),
    }
    return made[name]()


class Bench:
    """A family's pipeline, and how its runs are compared."""

    def __init__(self, name: str, captions: int, training: int = 4):
        if name == "shapes":
            loaded = family.load()
            self.training, self.held_out = family.calibration_captions(training), shapes.held_out_captions(captions)
        else:
            loaded = image_family.load()
            generator = torch.Generator().manual_seed(77)
            self.training = [glyphs.draw_scene(generator, held_out=False).caption for _ in range(training)]
            self.held_out = glyphs.held_out_captions(captions)
        self.name, self.pipe, self.call = name, loaded.pipe, loaded.call
        self.artifact = loaded.folder / "forecast.json"

    def others_prior(self) -> Path:
        """A prior without this family in it."""
        other = image_family if self.name == "shapes" else family
        path = OUT / f"prior_for_{self.name}.json"
        artifacts.replace(path, prior.combined([calibration(other.shipped_folder() / "forecast.json")]))
        return path

    def setting(
        self, solver: str, steps: int, shift: float, budgets: tuple[int, ...], again: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The rows of a setting; of rows that are there already what depends on the prior alone is measured again."""
        self.pipe.scheduler = scheduler(solver, shift)
        call = {**self.call, "num_inference_steps": steps}
        full = [sample(self.pipe, c, n, call, output="pt") for n, c in enumerate(self.held_out)]
        made = OUT / f"{self.name}_{solver}_{steps}_{shift:g}.json"
        calibrate_forecast(self.pipe, self.training, made, call=call, tails=6, tail_samples=2, trials=())
        runs = calibration(made).gram.num_steps  # model calls: Heun has two a step
        rows = []
        for number, budget in enumerate(budgets):
            methods = {
                "calibrated for it": lambda b=budget: vaccel.Forecast.load(made, b),
                "read by level": lambda b=budget: vaccel.Forecast.load(self.artifact, b),
                "prior": lambda b=budget: vaccel.Forecast.prior(b),
                "prior of the other family": lambda b=budget: _with(self.others_prior(), b),
                "shaped by index": lambda b=budget: vaccel.Forecast(_shaped(runs, b), runs),
                "straight line by the prior": lambda b=budget: vaccel.Forecast.shaped(runs, b),
            }
            found = dict(again[number]["psnr"]) if again else {}
            for name, make in methods.items():
                if name not in found or "prior" in name:
                    found[name] = self.psnr(full, call, make())
            if solver != "heun" and "fewer steps" not in found:
                found["fewer steps"] = self.psnr(full, {**call, "num_inference_steps": budget}, None)
            rows.append({"solver": solver, "steps": steps, "shift": shift, "budget": budget, "psnr": found})
            told = "  ".join(f"{name} {mean:.1f} ({worst:.1f})" for name, (mean, worst) in found.items())
            print(f"{self.name} {solver} T={steps} shift={shift:g} {budget}: {told}", flush=True)
        return rows

    def psnr(self, full: list[torch.Tensor], call: dict[str, Any], method: Any) -> tuple[float, float]:
        """(mean, worst) over the held-out captions."""
        found = []
        for number, caption in enumerate(self.held_out):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if method is None:
                    made = sample(self.pipe, caption, number, call, output="pt")
                else:
                    with vaccel.accelerate(self.pipe, method):
                        made = sample(self.pipe, caption, number, call, output="pt")
            error = float((made.double() - full[number].double()).square().mean())
            found.append(-10 * torch.log10(torch.tensor(max(error, 1e-12))).item())
        return round(statistics.mean(found), 2), round(min(found), 2)


def _with(path: Path, budget: int) -> vaccel.Forecast:
    return vaccel.Forecast.load(path, budget, per="tensor", allow_mismatch=True, adapt=True)


@app.command()
def measure(
    name: Annotated[str, typer.Argument(help="shapes or glyphs.")],
    captions: Annotated[int, typer.Option(help="Held-out captions.")] = 6,
    again: Annotated[bool, typer.Option("--again", help="Measure again what depends on the prior.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Measures every setting and writes the JSON."""
    torch.set_num_threads(threads)
    OUT.mkdir(parents=True, exist_ok=True)
    kept = OUT / f"rows_{name}.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    bench, made = Bench(name, captions), []
    for solver, steps, shift, budgets in SHAPES if name == "shapes" else GLYPHS:
        there = [r for r in rows if (r["solver"], r["steps"], r["shift"]) == (solver, steps, shift)]
        made += there if there and not again else bench.setting(solver, steps, shift, budgets, there)
        (OUT / f"again_{name}.json" if again else kept).write_text(json.dumps(made))
    kept.write_text(json.dumps(made))
    results.write(f"levels_{name}", {"rows": made, "prompts": bench.held_out})


@app.callback()
def _main() -> None:
    """A group, so that the command is named."""


if __name__ == "__main__":
    app()
