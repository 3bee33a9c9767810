"""Rivals of 2026 beside Forecast at equal computed steps: ``python bench/measure_rivals.py measure shapes|glyphs``.

Each rival is a plain loop in ``bench/rivals/``, with decisions and caches for free.  PSNR in dB of the finished clip or
picture to the full run, on held-out captions.  Rivals are tuned on these very captions: every setting runs on two of
them, the best ``FINALISTS`` on all, the best mean stands.  A threshold is fitted so that its mean cost over the
captions is at most the budget: looked for on recorded full runs, then corrected by real ones.  Calibrated rivals are
calibrated on eight captions of the training side.  Forecast runs as
shipped.  "fewer steps" is the solver itself.

Every run and every result is a line of out/rivals_<family>.jsonl; started again, nothing is made twice.  Rows that
changed are measured again by ``--only Forecast --only Forecast.prior --again``, without the others' log.  The results
are in bench/results/cpu/rivals_<family>.json.  ``fresh`` takes every rival's setting from there to captions that
nothing was chosen on, with calibrations of as many captions as Forecast's.
"""

from __future__ import annotations

import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import results
import torch
import typer
from measure_unet import captions_to_calibrate
from rivals.loop import Loop, Recorded, Rival, TooManyError, UNetDenoiser, WanDenoiser, recorded
from rivals.settings import RIVALS, Calibration, Option

import vaccel
from vaccel.calibrate.samples import prompts_encoded_once, sample
from vaccel.demo import family, glyphs, image_family, shapes
from vaccel.planning import artifacts

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
OUT = Path("out")
STEPS, BUDGETS = 50, (9, 13, 17, 22, 27)
TUNED_ON, FINALISTS = (0, 1), 2
CALIBRATED = 8  # captions that calibrated rivals see
FIRST_SEED = 1000  # of calibrations; the captions compared on take 0, 1, ..
OURS = ("Forecast", "Forecast.prior", "fewer steps")
REPAIRS = 4  # real fits of a threshold, at most
LOWEST, HIGHEST = 1e-5, 1e3  # thresholds


class Bench:
    """A family's loop, its full runs, and every run known so far by (rival, budget, setting, caption)."""

    def __init__(self, name: str, captions: int, first: int = 0, calibrated: int = CALIBRATED):
        self.name, loaded = name, (family if name == "shapes" else image_family).load()
        self.first, self.which = first, list(range(first, first + captions))
        self.pipe, self.call = loaded.pipe, {**loaded.call, "num_inference_steps": STEPS}
        self.artifact = loaded.folder / "forecast.json"
        self.samples = len(artifacts.read(self.artifact, "forecast")["samples"])  # of Forecast's calibration
        if name == "shapes":
            self.captions = shapes.held_out_captions(first + captions)
            training = family.calibration_captions(calibrated)
        else:
            self.captions, training = glyphs.held_out_captions(first + captions), captions_to_calibrate(calibrated)
        (self.pipe.transformer if name == "shapes" else self.pipe.unet).requires_grad_(False)
        denoiser = (WanDenoiser if name == "shapes" else UNetDenoiser)(self.pipe, loaded.call, STEPS)
        self.loop, folder = Loop(denoiser), OUT / f"rivals_{name}{_fresh(first)}"
        folder.mkdir(parents=True, exist_ok=True)
        self.calibration = Calibration(self.loop, training, FIRST_SEED, folder)
        self.log = OUT / f"rivals_{name}{_fresh(first)}.jsonl"
        #: What was written before, then what the log holds: the later one counts.
        self.lines = [] if first else list(written(name).get("rows", []))
        self.lines += [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        self.runs = {(r["rival"], r["budget"], r["setting"], r["caption"]): r for r in self.lines if "caption" in r}
        self.full = {n: sample(self.pipe, self.captions[n], n, self.call, output="pt") for n in self.which}
        self._recorded: list[Recorded] = []
        self._memory: dict[Any, torch.Tensor] = {}

    def append(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        with self.log.open("a") as f:
            f.write(json.dumps(line) + "\n")

    @property
    def recorded(self) -> list[Recorded]:
        """Full runs on the captions, to look for thresholds on."""
        self._recorded = self._recorded or recorded(self.loop, self.captions[self.first :], self.first)
        return self._recorded

    def psnr(self, made: torch.Tensor, caption: int) -> float:
        error = float((made.double() - self.full[caption].double()).square().mean())
        return round(-10 * math.log10(max(error, 1e-12)), 3)

    def run(self, name: str, budget: int, option: Option, value: float, caption: int) -> dict[str, Any]:
        """A rival's run on a caption; where it computes far too many steps, the cost alone, one too many."""
        setting = f"{option.text}, threshold={value:.6g}" if option.fitted else option.text
        key = name, budget, setting, caption
        if key not in self.runs:
            line = dict(zip(("rival", "budget", "setting", "caption"), key, strict=True))
            limit = None if not option.fitted else budget + 8
            try:
                latents, steps = self.loop.run(self.captions[caption], caption, option.make(value), limit=limit)
                line |= {"psnr": self.psnr(self.loop.denoiser.decode(latents), caption), "steps": steps}
            except TooManyError:
                line |= {"psnr": None, "steps": limit + 1}
            self.append(line)
            self.runs[key] = line
        return self.runs[key]

    def fitted(self, name: str, budget: int, option: Option, which: list[int]) -> tuple[float, list[dict[str, Any]]]:
        """The threshold whose mean cost on the captions is the highest at most the budget, and its runs."""
        if not option.fitted:
            return 0.0, [self.run(name, budget, option, 0.0, n) for n in which]
        target, tried = float(budget), {}
        for _ in range(REPAIRS):
            value = self._foreseen(option, which, target)
            if value in tried:
                break
            runs = [self.run(name, budget, option, value, n) for n in which]
            cost = statistics.fmean(r["steps"] for r in runs)
            tried[value] = cost, runs
            if budget - 0.34 <= cost <= budget:
                break
            target += (budget - cost) * (1 if cost > budget else 0.7)
        within = {v: found for v, found in tried.items() if found[0] <= budget}
        if not within:
            return math.nan, []
        value = max(within, key=lambda v: within[v][0])
        return value, within[value][1]

    def _foreseen(self, option: Option, which: list[int], target: float) -> float:
        """The lowest threshold with at most ``target`` steps a recorded full run, in the mean."""
        low, high = LOWEST, HIGHEST
        for _ in range(22):
            middle = (low * high) ** 0.5
            costs = [self._counted(option.make(middle), n) for n in which]
            low, high = (middle, high) if statistics.fmean(costs) > target else (low, middle)
        return float(f"{high:.6g}")

    def _counted(self, rival: Rival, caption: int) -> int:
        """Steps that a rival would compute if skipping changed nothing."""
        run, cond, count = self.recorded[caption - self.first], self.loop.denoiser.cond, 0
        rival.memory = self._memory  # recorded latents stay, so what follows from them alone may be kept
        for step, (x, seen) in enumerate(zip(run.x, run.seen, strict=True)):
            computed = rival.computes(step, x)
            rival.observe(step, x, seen.output[cond : cond + 1], computed)
            count += computed
        return count

    def rival(self, name: str, budget: int) -> dict[str, Any]:
        """The row of a rival at a budget."""
        options = RIVALS[name](self.calibration, budget)
        quick = [(o, self.fitted(name, budget, o, list(TUNED_ON))[1]) for o in options]
        ranked = sorted(((_mean(runs), n) for n, (_, runs) in enumerate(quick) if runs), reverse=True)
        rows = []
        for _, n in ranked[:FINALISTS]:
            _, runs = self.fitted(name, budget, options[n], self.which)
            if runs:
                rows.append(_row(name, budget, runs) | {"setting": runs[0]["setting"]})
        best = max(rows, key=lambda r: r["psnr"])
        return best | {"settings": len(options), "best_worst": max(r["psnr_worst"] for r in rows)}

    def with_setting(self, name: str, budget: int, setting: str) -> dict[str, Any]:
        """The row of a rival with a setting that was chosen before; a threshold is fitted to these captions."""
        text = setting.partition(", threshold=")[0]
        option = next(o for o in RIVALS[name](self.calibration, budget) if o.text == text)
        _, runs = self.fitted(name, budget, option, self.which)
        return _row(name, budget, runs) | {"setting": setting}

    def ours(self, name: str, budget: int) -> dict[str, Any]:
        """The row of Forecast, its prior, or the solver with fewer steps."""
        call = self.call if name != "fewer steps" else {**self.call, "num_inference_steps": budget}
        runs = []
        for n in self.which:
            made, steps = self._method(name, budget)(self.captions[n], n, call)
            runs.append({"psnr": self.psnr(made, n), "steps": steps})
        return _row(name, budget, runs)

    def _method(self, name: str, budget: int) -> Callable[[str, int, dict], tuple[torch.Tensor, float]]:
        if name == "fewer steps":
            return lambda caption, n, call: (sample(self.pipe, caption, n, call, output="pt"), budget)
        load = {
            "Forecast": lambda: vaccel.Forecast.load(self.artifact, budget),
            "Forecast.prior": lambda: vaccel.Forecast.prior(budget),
        }
        method, calls = load[name](), 2  # of each step: one a branch, or one of both that counts twice

        def run(caption: str, n: int, call: dict[str, Any]) -> tuple[torch.Tensor, float]:
            with warnings.catch_warnings(), vaccel.accelerate(self.pipe, method) as handle:
                warnings.simplefilter("ignore")
                made = sample(self.pipe, caption, n, call, output="pt")
                return made, handle.trace.calls["large"] / calls

        return run


def _fresh(first: int) -> str:
    return "_fresh" if first else ""


def _mean(runs: list[dict[str, Any]]) -> float:
    values = [r["psnr"] for r in runs]
    return -math.inf if None in values else statistics.fmean(values)


def _row(name: str, budget: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    each = [r["psnr"] for r in runs]
    return {
        "rival": name, "budget": budget, "psnr": round(statistics.fmean(each), 3), "psnr_worst": min(each),
        "steps": round(statistics.fmean(r["steps"] for r in runs), 3), "each": each,
    }  # fmt: skip


@app.command()
def measure(
    name: Annotated[str, typer.Argument(help="shapes or glyphs.")],
    captions: Annotated[int, typer.Option(help="Held-out captions.")] = 6,
    only: Annotated[list[str] | None, typer.Option(help="A row of the table; may be given again.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="Computed steps; may be given again.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure rows again that are there.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Measures what is missing, one row after the other; then writes the JSON where every row is there."""
    torch.set_num_threads(threads)
    bench, began = Bench(name, captions), time.perf_counter()
    done = {(r["rival"], r["budget"]) for r in bench.lines if "each" in r}
    for row in only or (*OURS, *RIVALS):
        for b in budget or BUDGETS:
            if (row, b) in done and not again:
                continue
            with prompts_encoded_once(bench.pipe), torch.no_grad() if row != "BudCache" else torch.enable_grad():
                line = bench.ours(row, b) if row in OURS else bench.rival(row, b)
            bench.append(line | {"captions": captions, "commit": results._git("rev-parse", "HEAD")})
            told = f"{line['psnr']:.1f} ({line['psnr_worst']:.1f}) at {line['steps']:.1f}"
            print(f"{time.perf_counter() - began:6.0f} s  {row} {b}: {told}  {line.get('setting', '')}", flush=True)
    if {(r["rival"], r["budget"]) for r in bench.lines if "each" in r} >= {
        (row, b) for row in (*OURS, *RIVALS) for b in BUDGETS
    }:
        save(bench.name, bench.lines, bench.captions, bench.samples)


@app.command()
def fresh(
    name: Annotated[str, typer.Argument(help="shapes or glyphs.")],
    captions: Annotated[int, typer.Option(help="Held-out captions.")] = 12,
    first: Annotated[int, typer.Option(help="The first of them; those before were looked at.")] = 80,
    calibrated: Annotated[int, typer.Option(help="Captions of the training side that rivals are calibrated on.")] = 40,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Every row again on captions that nothing was chosen on, with the settings that were."""
    torch.set_num_threads(threads)
    chosen = {(r["rival"], r["budget"]): r.get("setting", "") for r in written(name)["rows"]}
    bench, began = Bench(name, captions, first, calibrated), time.perf_counter()
    for b, found in written(name)["budcache"].items():  # its search is of its own captions, and takes hours
        (bench.calibration.folder / f"budcache_{b}.json").write_text(json.dumps(found))
    done = {(r["rival"], r["budget"]) for r in bench.lines if "each" in r}
    for (row, b), setting in chosen.items():
        if (row, b) in done:
            continue
        with prompts_encoded_once(bench.pipe), torch.no_grad():
            line = bench.ours(row, b) if row in OURS else bench.with_setting(row, b, setting)
        bench.append(line)
        told = f"{line['psnr']:.1f} ({line['psnr_worst']:.1f}) at {line['steps']:.1f}"
        print(f"{time.perf_counter() - began:6.0f} s  {row} {b}: {told}", flush=True)
    rows = [{k: v for k, v in r.items() if k != "each"} for r in bench.lines if "each" in r]
    payload = {
        "rows": rows, "first": first, "prompts": bench.captions[first:], "calibration_samples": calibrated,
        "forecast_samples": bench.samples, "steps": STEPS,
    }  # fmt: skip
    print(results.write(f"rivals_{name}_fresh", payload, command=f"measure_rivals.py fresh {name}"))


@app.command()
def write(name: Annotated[str, typer.Argument(help="shapes or glyphs.")], captions: int = 6) -> None:
    """The JSON from the log."""
    bench = Bench(name, captions)
    save(name, bench.lines, bench.captions, bench.samples)


def save(name: str, lines: list[dict[str, Any]], captions: list[str], samples: int) -> None:
    order = (*OURS, *RIVALS)
    latest = {(r["rival"], r["budget"]): r for r in lines if "each" in r}
    rows = sorted(latest.values(), key=lambda r: (order.index(r["rival"]), r["budget"]))
    before = written(name)
    searched = {str(b): json.loads(path.read_text()) for b in BUDGETS if (path := _searched(name, b)).exists()}
    payload = {
        "rows": rows, "prompts": captions, "steps": STEPS, "calibration_samples": CALIBRATED, "tuned_on": TUNED_ON,
        "forecast_samples": samples,
        "runs": sum("caption" in r for r in lines) or before.get("runs"),
        "budcache": before.get("budcache", {}) | searched,
    }  # fmt: skip
    print(results.write(f"rivals_{name}", payload, command=f"measure_rivals.py measure {name}"))


def written(name: str) -> dict[str, Any]:
    """The JSON as it is, empty where there is none: a row may be measured again without the log of the others."""
    path = results.BENCH / "results" / "cpu" / f"rivals_{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _searched(name: str, budget: int) -> Path:
    return OUT / f"rivals_{name}" / f"budcache_{budget}.json"


if __name__ == "__main__":
    app()
