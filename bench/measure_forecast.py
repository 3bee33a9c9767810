"""The rivals of Forecast at equal cost on the demo family: ``python bench/measure_forecast.py rivals|write``.

``rivals``: each of ``rivals.contenders.RIVALS`` at a cost of 9, 13, 17, 22 and 27 of 50 full steps.  Costs are counted,
not timed: the blocks of the large model that ran, over those of a full step (8 blocks, 2 branches), and the small
model's likewise, at the ratio that ``measure_family.py`` measured.  Every rival is fitted to every budget on two of
the test prompts, with whatever it has to be varied: of its options those that look best on the first prompt are fitted
on both, and the best of these runs on every prompt.  Fitting on the test prompts favours the rivals.

Every run is a line of ``--log`` as soon as it is made, and so is every result; started again, nothing is made twice.
Several processes may share a log (``--only``).  ``write``: bench/results/cpu/forecast_rivals.json from such a log.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import results
import torch
import typer
from rivals.contenders import RIVALS, STEPS, Knob, Option, Reader
from torch import nn

import vaccel
from vaccel import demo
from vaccel.demo.checker import check
from vaccel.demo.shapes import held_out_captions
from vaccel.evaluate import metrics

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
Log = Annotated[Path, typer.Option(help="One JSON line a run and a result.")]
LOG = Path("out/forecast_rivals.jsonl")
BUDGETS = (27, 22, 17, 13, 9)
PROMPTS, SEED = 16, 0
TUNING = (0, 5)  # prompts the rivals are fitted on
TRIES = (2, 4)  # fitting on one prompt, on all of them
NEAR = (0.55, 0.3)  # steps off the budget that need no further try, likewise
SHORT = 0.5  # steps below the budget that are too many, where more can be had
BEHIND = 3.0  # dB on the first prompt after which an option is given up
FITTED = 2  # options that are fitted on all of TUNING


def off(cost: float, budget: float) -> float:
    """How far a cost is from the budget; too little counts twice, since it is to the rival's harm."""
    return 2 * (budget - cost) if cost < budget - SHORT else abs(cost - budget)


class Blocks:
    """Counts the blocks of the models that really run: caches replace a block's forward, so it looks inside."""

    def __init__(self, *models: nn.Module):
        self.counts = [0] * len(models)
        self.depths = [len(model.blocks) for model in models]
        for i, model in enumerate(models):
            for block in model.blocks:
                block.ffn.register_forward_pre_hook(lambda module, args, i=i: self._seen(i))

    def _seen(self, model: int) -> None:
        self.counts[model] += 1

    def steps(self) -> list[float]:
        """Steps of both branches that each model ran since last asked."""
        ran = [count / depth / 2 for count, depth in zip(self.counts, self.depths, strict=True)]
        self.counts = [0] * len(self.counts)
        return ran


class Bench:
    """Runs contenders on the test prompts; ``runs`` holds what is known by (contender, prompt), from the log too."""

    def __init__(self, log: Path, prompts: int):
        self.log, self.family = log, demo.load()
        log.parent.mkdir(parents=True, exist_ok=True)
        self.pipe, self.captions = self.family.pipe, held_out_captions(prompts)
        self.tuning = [i for i in TUNING if i < prompts]
        self.call = {**self.family.call, "num_inference_steps": STEPS}
        self.read = Reader(self.pipe, self.family.folder, self.call)
        self.ratio = cost_ratio()
        self.blocks = Blocks(self.pipe.transformer, self.family.small)
        lines = read_log(log)
        self.runs = {(r["contender"], r["prompt"]): r for r in lines if "prompt" in r}
        self.done = {(r["rival"], r["budget"]) for r in lines if r.get("prompts") == prompts and "error" not in r}
        self._clip(0, steps=2)
        self.full = [self._reference(i) for i in range(prompts)]

    def _clip(self, prompt: int, steps: int = STEPS) -> tuple[np.ndarray, float]:
        generator = torch.Generator().manual_seed(SEED)
        call = {**self.call, "num_inference_steps": steps}
        began = time.perf_counter()
        frames = self.pipe(self.captions[prompt], generator=generator, output_type="np", **call).frames
        return np.asarray(frames[0], dtype=np.float32), time.perf_counter() - began

    def _reference(self, prompt: int) -> np.ndarray:
        kept = self.log.with_name(f"full_{prompt}.npy")
        if kept.exists():
            return np.load(kept)
        self.blocks.steps()
        clip, seconds = self._clip(prompt)
        np.save(kept, clip)
        large, _ = self.blocks.steps()
        right = check(clip, self.captions[prompt]).correct
        self.append({"full": prompt, "cost": large, "seconds": round(seconds, 3), "caption": float(right)})
        return clip

    def append(self, line: dict[str, Any]) -> None:
        with self.log.open("a") as f:
            f.write(json.dumps(line) + "\n")

    def run(self, text: str, prompt: int) -> dict[str, Any]:
        """Cost, seconds and fidelity of a contender on a prompt."""
        if (text, prompt) in self.runs:
            return self.runs[text, prompt]
        contender = self.read(text)
        with contender.applied(self.pipe, self.family.small):
            self.blocks.steps()
            clip, seconds = self._clip(prompt, contender.num_steps or STEPS)
            large, small = self.blocks.steps()
        full, caption = self.full[prompt], self.captions[prompt]
        row = {
            "contender": text, "prompt": prompt, "psnr": round(min(metrics.psnr(full, clip), 100.0), 4),
            "ssim": round(metrics.ssim(full, clip), 6), "caption": float(check(clip, caption).correct),
            "cost": round(large + small / self.ratio, 4), "large": large, "small": small, "seconds": round(seconds, 3),
        }  # fmt: skip
        self.runs[text, prompt] = row
        self.append(row)
        return row

    def mean(self, text: str, prompts: list[int], key: str) -> float:
        return statistics.fmean(self.run(text, p)[key] for p in prompts)


class Fit:
    """The contender that stands for a rival at a budget."""

    def __init__(self, bench: Bench, budget: float):
        self.bench, self.budget = bench, budget

    def choose(self, options: list[Option]) -> tuple[str, Option]:
        """The best text, and the option it is of."""
        tuning = self.bench.tuning
        if len(options) > 1:
            texts = [self.fitted(option, tuning[:1]) for option in options]
            options = [options[i] for i in self.best(texts, tuning[:1])[:FITTED]]
        texts = [self.fitted(option, tuning) for option in options]
        best = self.best(texts, tuning)[0]
        return texts[best], options[best]

    def best(self, texts: list[str], prompts: list[int]) -> list[int]:
        """Indices of those at (almost) the budget and not far behind, the best first."""
        wrong = [off(self.bench.mean(text, prompts, "cost"), self.budget) for text in texts]
        psnr = [self.bench.mean(text, prompts, "psnr") for text in texts]
        near = [i for i, w in enumerate(wrong) if w <= max(0.75, min(wrong))]
        near.sort(key=lambda i: -psnr[i])
        return [i for i in near if psnr[i] >= psnr[near[0]] - BEHIND]

    def fitted(self, option: Option, prompts: list[int], target: float | None = None) -> str:
        """The option's text whose mean cost on the prompts is nearest the budget (or the target)."""
        if not isinstance(option, Knob):
            for p in prompts:
                self.bench.run(option, p)
            return option
        target = self.budget if target is None else target
        last = len(prompts) == len(self.bench.tuning)
        for _ in range(TRIES[last]):
            costs = self.costs(option, prompts)
            value = min(costs, key=lambda v: off(costs[v], target), default=None)
            if value is None or off(costs[value], target) > NEAR[last]:
                value = option.between(costs, target)
            elif self.known(option.at(value), prompts):
                break
            if value is None:
                break
            for p in prompts:
                self.bench.run(option.at(value), p)
        costs = self.costs(option, prompts)
        best = min(costs, key=lambda v: off(costs[v], target))
        for p in prompts:  # of some only the first prompt is known
            self.bench.run(option.at(best), p)
        return option.at(best)

    def known(self, text: str, prompts: list[int]) -> bool:
        return all((text, p) in self.bench.runs for p in prompts)

    def costs(self, knob: Knob, prompts: list[int]) -> dict[float, float]:
        """Mean costs by value: of what ran on all the prompts, and estimates from the first prompt."""
        runs = self.bench.runs
        first = {knob.value(t): r["cost"] for (t, p), r in runs.items() if p == prompts[0]}
        first.pop(None, None)
        ready = [v for v in first if self.known(knob.at(v), prompts)]
        mean = {v: self.bench.mean(knob.at(v), prompts, "cost") for v in ready}
        shift = statistics.fmean(mean[v] - first[v] for v in ready) if ready else 0.0
        return {v: mean.get(v, cost + shift) for v, cost in first.items()}


def measure(bench: Bench, name: str, budget: int) -> dict[str, Any]:
    """One row of the table: a rival at a budget, on all prompts."""
    fit, every = Fit(bench, budget), list(range(len(bench.captions)))
    text, option = fit.choose(RIVALS[name](budget))
    short = budget - bench.mean(text, every, "cost")
    if isinstance(option, Knob) and short > SHORT:  # the prompts it was fitted on cost more than the others
        again = fit.fitted(option, bench.tuning, bench.mean(text, bench.tuning, "cost") + short)
        texts = [text, again]
        text = min(texts, key=lambda t: off(bench.mean(t, every, "cost"), budget))
    return {"rival": name, "budget": budget, "prompts": len(every), "contender": text} | summary(bench, text)


def summary(bench: Bench, text: str) -> dict[str, Any]:
    """Fidelity, cost and time of a contender over all prompts."""
    rows = [bench.run(text, p) for p in range(len(bench.captions))]
    values = {key: [r[key] for r in rows] for key in ("psnr", "ssim", "caption", "cost", "seconds")}
    found = {key: round(statistics.fmean(values[key]), 4) for key in ("psnr", "ssim", "caption", "cost")}
    return found | {
        "psnr_std": round(statistics.pstdev(values["psnr"]), 4), "psnr_worst": min(values["psnr"]),
        "ssim_worst": min(values["ssim"]), "cost_range": [min(values["cost"]), max(values["cost"])],
        "seconds": statistics.median(values["seconds"]),
    }  # fmt: skip


def cost_ratio() -> float:
    """What a forward of the large model costs in forwards of the small one."""
    return json.loads((results.BENCH / "results" / "cpu" / "family.json").read_text())["cost_ratio"]["median"]


def read_log(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@app.command()
def rivals(
    log: Log = LOG,
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = PROMPTS,
    budget: Annotated[list[int] | None, typer.Option(help="Full steps; may be given again.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A rival; may be given again.")] = None,
) -> None:
    """Every rival at every budget; writes the JSON when the log has them all."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    bench = Bench(log, prompts)
    bench.append({"vaccel": str(Path(vaccel.__file__).parent), "commit": commit(), "ratio": bench.ratio})
    for name in only or RIVALS:
        for b in budget or BUDGETS:
            if (name, b) in bench.done:
                continue
            try:
                line = measure(bench, name, b)
            except Exception as error:
                line = {"rival": name, "budget": b, "error": f"{type(error).__name__}: {error}"}
            bench.append(line)
            shown = {k: v for k, v in line.items() if k in ("psnr", "psnr_worst", "cost", "contender", "error")}
            print(f"{time.perf_counter() - began:6.0f} s  {name} at {b}: {shown}", flush=True)
    found = {(r["rival"], r["budget"]) for r in read_log(log) if r.get("prompts") == PROMPTS}
    if found >= {(name, b) for name in RIVALS for b in BUDGETS}:
        write(log)


def commit() -> str | None:
    """Of the vaccel that was measured, which may lie elsewhere than this file."""
    return results._git("-C", str(Path(vaccel.__file__).parent), "rev-parse", "HEAD")


@app.command()
def write(log: Log = LOG) -> None:
    """The JSON, from a log; and the table."""
    lines = read_log(log)
    latest = {(r["rival"], r["budget"]): r for r in lines if "rival" in r and r.get("prompts", PROMPTS) == PROMPTS}
    order = {name: i for i, name in enumerate(RIVALS)}
    table = sorted(latest.values(), key=lambda r: (order.get(r["rival"], len(order)), -r["budget"]))
    chosen = {r.get("contender") for r in table}
    runs = {(r["contender"], r["prompt"]): r for r in lines if "prompt" in r and r["contender"] in chosen}
    full = {r["full"]: r for r in lines if "full" in r}
    payload = {
        "captions": held_out_captions(PROMPTS), "seed": SEED, "steps": STEPS, "threads": 1, "tuned_on": TUNING,
        "cost_ratio": cost_ratio(), "measured": [r for r in lines if "ratio" in r],
        "full": {
            "seconds": statistics.median(r["seconds"] for r in full.values()),
            "caption": statistics.fmean(r["caption"] for r in full.values()),
        },
        "summary": table, "rows": [runs[key] for key in sorted(runs)],
    }  # fmt: skip
    print(show(table))
    print(results.write("forecast_rivals", payload, command="measure_forecast.py rivals"))


def show(table: list[dict[str, Any]]) -> str:
    """PSNR (worst prompt) and cost by rival and budget."""
    cells = {(r["rival"], r["budget"]): r for r in table}
    lines = [f"{'':32}" + "".join(f"{b:>22}" for b in sorted(BUDGETS))]
    for name in dict.fromkeys(r["rival"] for r in table):
        line = f"{name:32}"
        for b in sorted(BUDGETS):
            r = cells.get((name, b))
            known = f"{r['psnr']:.1f} ({r['psnr_worst']:.1f}) @{r['cost']:.1f}" if r and "psnr" in r else "-"
            line += f"{known:>22}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    app()
