"""LeMiCa and MixCache on the demo family: ``python bench/measure_caching.py lemica|samples|cost|closed|mixcache``.

``lemica``: every budget by both objectives, beside evenly spaced steps, TeaCache at as many forwards, and the solver
with fewer steps.  ``samples``: how many calibration samples a schedule needs.  ``cost``: what a calibration costs, with
each saving, and what the inexact ones do to the schedules.  ``closed``: schedules that follow from the Forecast
calibration without a run.  ``mixcache``: both settings, the rows of the paper's
Table 2, and which levels were chosen.  Each writes bench/results/<device>/<part>.json (``cost``: lemica_cost.json).
Held-out captions; the calibrations were made on others.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import results
import torch
import typer
from rich.progress import Progress

import vaccel
from vaccel import demo
from vaccel.actions import Full
from vaccel.cache.buffers import Buffers
from vaccel.calibrate import calibrate_lemica, lemica_from_forecast
from vaccel.calibrate.replay import Replayer, Stretch
from vaccel.demo.checker import check
from vaccel.demo.family import calibration_captions
from vaccel.demo.shapes import held_out_captions
from vaccel.evaluate import Contender, compare, metrics, parse_contender, write_report
from vaccel.methods import RunInfo
from vaccel.methods.lemica import LeMiCa, edges
from vaccel.planning import artifacts
from vaccel.planning.schedules import solve

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
Prompts = Annotated[int, typer.Option(help="Held-out captions.")]
BUDGETS = (25, 20, 17, 14, 10)
STEPS = 50


def measured(contenders: list[Contender], prompts: int, page: str) -> dict[str, Any]:
    """The comparison's JSON; its page goes to out/."""
    family = demo.load()
    captions = held_out_captions(prompts)
    with Progress() as bar:
        task = bar.add_task("comparing", total=1)
        comparison = compare(
            family.pipe, contenders, captions, small=family.small, call={**family.call, "num_inference_steps": STEPS},
            checker=lambda clip, prompt: {"caption": float(check(clip, prompt).correct)},
            progress=lambda done, total, what: bar.update(task, completed=done, total=total, description=what[:60]),
        )  # fmt: skip
    write_report(comparison, Path("out") / page, title=page, facts={})
    return comparison.to_json() | {"prompts": captions}


def teacache_threshold(budget: int, folder: Path) -> float:
    """The one at which TeaCache computes ``budget`` steps; its decisions here depend on the timesteps alone."""
    data = artifacts.read(folder / "teacache.json", "teacache")
    changes = next(iter(data["samples"].values()))["embedding"]

    def computed(threshold: float) -> int:
        method = vaccel.TeaCache.load(folder / "teacache.json", threshold=threshold)
        policy = method.start(RunInfo(STEPS, Buffers()))
        return sum(isinstance(policy.decide(_Step(i, changes)), Full) for i in range(STEPS))

    low, high = 1e-4, 10.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if computed(middle) > budget else (low, middle)
    return high


class _Step:
    """What TeaCache asks of a step."""

    num_steps = STEPS

    def __init__(self, index: int, changes: list[float]):
        self.index, self.changes = index, changes

    def modulation_change(self, model: str, *, projected: bool = False) -> list[float] | None:
        return [self.changes[self.index - 1]] if self.index else None

    def record(self, **metrics: Any) -> None:
        pass


def even(budget: int) -> list[int]:
    return [round(k * (STEPS - 1) / (budget - 1)) for k in range(budget)]


@app.command()
def lemica(prompts: Prompts = 4) -> None:
    """Every budget, beside what else costs as much."""
    folder = demo.load().folder
    contenders = []
    for budget in BUDGETS:
        texts = [f"LeMiCa(artifact='lemica.json', budget={budget})"]
        texts += [f"LeMiCa(artifact='lemica.json', budget={budget}, objective='sum')"]
        texts += [f"Schedule({even(budget)}, num_steps={STEPS})"]
        texts += [f"TeaCache(artifact='teacache.json', threshold={teacache_threshold(budget, folder):.6f})"]
        contenders += [parse_contender(text, folder) for text in (*texts, f"steps({budget})")]
    payload = measured(contenders, prompts, "lemica")
    print(results.write("lemica", payload))


class Fidelity:
    """PSNR of a method to the full model, mean over captions; full clips are made once."""

    def __init__(self, prompts: int):
        self.family = demo.load()
        self.call = {**self.family.call, "num_inference_steps": STEPS}
        self.full = {p: self._clip(p) for p in held_out_captions(prompts)}

    def _clip(self, prompt: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return np.asarray(self.family.pipe(prompt, generator=generator, output_type="np", **self.call).frames[0])

    def __call__(self, method: Any) -> float:
        return statistics.fmean(self.each(method))

    def each(self, method: Any) -> list[float]:
        with vaccel.accelerate(self.family.pipe, method):
            return [metrics.psnr(clip, self._clip(p)) for p, clip in self.full.items()]


def schedule(data: dict[str, Any], budget: int) -> LeMiCa:
    """The best one of an artifact that is in memory."""
    graph = edges(data)
    path = solve(STEPS, graph)[budget - 1]
    return LeMiCa(path.nodes(graph), STEPS, reuse=data["reuse"])


def shared(a: LeMiCa, b: LeMiCa) -> float:
    """Share of full steps that two schedules of one budget have in common."""
    return round(len(set(a.full_steps) & set(b.full_steps)) / len(a.full_steps), 3)


@app.command()
def samples(prompts: Prompts = 4) -> None:
    """How much a schedule gains from more calibration samples (the paper's Table 2)."""
    fidelity = Fidelity(prompts)
    whole = artifacts.read(fidelity.family.folder / "lemica.json", LeMiCa.id)
    keys = [k for k, s in whole["samples"].items() if s.get("done")]
    rows = []
    for budget in (25, 17, 10):
        best = schedule(whole, budget)
        for count in [n for n in (1, 2, 4, 8) if n < len(keys)] + [len(keys)]:
            # Each sample alone, or the first ones: single samples also tell how much they differ.
            groups = [[k] for k in keys] if count == 1 else [keys[:count]]
            found = [schedule({**whole, "samples": {k: whole["samples"][k] for k in g}}, budget) for g in groups]
            psnr = [round(fidelity(m), 2) for m in found]
            rows.append({"budget": budget, "samples": count, "psnr": psnr, "shared": [shared(m, best) for m in found]})
            print(rows[-1])
    payload = {"unit": "dB", "prompts": list(fidelity.full), "available": len(keys), "rows": rows}
    print(results.write("lemica_samples", payload))


@app.command()
def cost(prompts: Prompts = 2, out: Path = Path("out/lemica_cost")) -> None:
    """What a calibration costs, and what the inexact savings do to the schedules."""
    fidelity = Fidelity(prompts)
    family, caption = fidelity.family, calibration_captions(1)[0]
    exact = artifacts.read(family.folder / "lemica.json", LeMiCa.id)
    (key,) = [k for k in exact["samples"] if k.startswith(_key(caption))]
    exact = {**exact, "samples": {key: exact["samples"][key]}}
    payload = {"exact": {**_timed_savings(fidelity, caption), "forwards": exact["samples"][key]["forwards"]}}
    psnr = {b: fidelity(schedule(exact, b)) for b in (25, 17, 10)}
    payload["exact"]["psnr"] = {b: round(v, 2) for b, v in psnr.items()}
    variants = {
        "coarse tails, every 2nd": {"tails": "coarse"},
        "coarse tails, every 4th": {"tails": "coarse", "stride": 4},
        "tails by the small model": {"tails": "small"},
        "no tails": {"tails": "none"},
        "only edges that budgets from 10 can need": {"min_budget": 10},
    }
    for name, options in variants.items():
        path = out / f"{name.replace(' ', '_').replace(',', '')}.json"
        path.unlink(missing_ok=True)
        began = time.perf_counter()
        data = calibrate_lemica(
            family.pipe, [caption], path, call=fidelity.call, small=family.small, batch=8, **options
        )
        (sample,) = data["samples"].values()
        found = {b: schedule(data, b) for b in psnr}
        payload[name] = {
            "minutes": round((time.perf_counter() - began) / 60, 2), "forwards": sample["forwards"],
            "small_forwards": sample["small_forwards"], "edges": len(sample["errors"]),
            "rank_correlation": _rank_correlation(exact["samples"][key]["errors"], sample["errors"]),
            "shared": {b: shared(m, schedule(exact, b)) for b, m in found.items()},
            "psnr": {b: round(fidelity(m), 2) for b, m in found.items()},
        }  # fmt: skip
        print(name, payload[name])
    print(results.write("lemica_cost", {"caption": caption, "prompts": list(fidelity.full), "variants": payload}))


@app.command()
def closed(prompts: Prompts = 12) -> None:
    """Edges that follow from the Forecast calibration without a run, beside those of exact replays."""
    fidelity = Fidelity(prompts)
    exact = artifacts.read(fidelity.family.folder / "lemica.json", LeMiCa.id)
    forecast = fidelity.family.folder / "forecast.json"
    found = lemica_from_forecast(forecast, Path("out/lemica_closed.json"))
    by = {"exact replays": exact, "closed form": found}
    errors = {name: {f"{e.start}-{e.end}": e.error for e in edges(data) if e.error} for name, data in by.items()}
    seconds = _seconds(lambda: lemica_from_forecast(forecast, Path("out/lemica_closed.json")))
    rows = []
    for budget in (25, 17, 10):
        methods = {name: schedule(data, budget) for name, data in by.items()}
        psnr = {name: fidelity.each(method) for name, method in methods.items()}
        told = {name: (round(statistics.fmean(p), 2), round(min(p), 2)) for name, p in psnr.items()}
        rows.append({"budget": budget, "psnr": told, "shared": shared(*methods.values())})
        print(rows[-1], flush=True)
    payload = {
        "rank_correlation": _rank_correlation(*errors.values()), "edges": len(errors["exact replays"]), "rows": rows,
        "samples": len(exact["samples"]), "forwards": sum(s["forwards"] for s in exact["samples"].values()),
        "seconds": round(seconds, 3), "prompts": list(fidelity.full),
    }  # fmt: skip
    print(results.write("lemica_closed", payload, command=f"measure_caching.py closed --prompts {prompts}"))


def _key(caption: str) -> str:
    from vaccel.calibrate.samples import hash_of

    return hash_of(caption)[:12]


def _timed_savings(fidelity: Fidelity, caption: str) -> dict[str, Any]:
    """Seconds an edge, from scratch, with the recorded start, and in a batch; and the same for all edges."""
    every = [Stretch(i, j) for j in range(2, STEPS) for i in range(max(0, j - 7), j - 1)]
    timed: dict[str, list[float]] = {"from scratch": [], "recorded start": [], "recorded start, one batch": []}
    with Replayer(fidelity.family.pipe, fidelity.call) as replayer:
        record = replayer.record(caption, 0)
        for end in (8, 18, 28, 38, 48):
            group = [s for s in every if s.end == end]
            for s in group:
                timed["recorded start"].append(_seconds(lambda s=s: replayer.errors(record, [s], caption, 0)))
            taken = _seconds(lambda group=group: replayer.errors(record, group, caption, 0))
            timed["recorded start, one batch"].append(taken / len(group))
    for end in (8, 18, 28, 38, 48):
        full = [i for i in range(STEPS) if not end - 4 < i < end]
        with vaccel.accelerate(fidelity.family.pipe, vaccel.Schedule(full, num_steps=STEPS)):
            timed["from scratch"].append(_seconds(lambda: fidelity._clip(caption)))
    scratch = 2 * sum(STEPS - (s.end - s.start - 1) for s in every)
    return {
        "edges": len(every), "forwards_from_scratch": scratch,
        "seconds_an_edge": {k: round(statistics.fmean(v), 3) for k, v in timed.items()},
        "minutes": {k: round(statistics.fmean(v) * len(every) / 60, 2) for k, v in timed.items()},
    }  # fmt: skip


def _seconds(function: Any) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _rank_correlation(a: dict[str, float], b: dict[str, float]) -> float:
    """Spearman's, over the edges that both have."""
    names = sorted(set(a) & set(b))
    ranks = [np.argsort(np.argsort([x[n] for n in names])) for x in (a, b)]
    return round(float(np.corrcoef(*ranks)[0, 1]), 4)


@app.command()
def mixcache(prompts: Prompts = 4) -> None:
    """Both settings, the rows of the paper's Table 2, and the levels chosen a prompt."""
    folder = demo.load().folder
    start = "MixCache(artifact='mixcache.json', intervals='eff'"
    rows = {
        "acc": "MixCache(artifact='mixcache.json')", "eff": f"{start})",
        "hybrid, N = 4": "MixCache(artifact='mixcache.json', interval=4)",
        "step only": f"{start}, levels=['step'], penalty=False)",
        "cfg only": f"{start}, levels=['cfg'], penalty=False)",
        "block only": f"{start}, levels=['block'], penalty=False)", "eff without penalty": f"{start}, penalty=False)",
        "eff, both branches resume": f"{start}, block_branches='both')",
    }  # fmt: skip
    payload = measured([parse_contender(text, folder) for text in rows.values()], prompts, "mixcache")
    names = dict(zip(rows.values(), rows, strict=True))
    for entry in payload["summary"]:
        entry["name"] = names[entry["contender"]]
        timelines = [r["timeline"] for r in payload["rows"] if r["contender"] == entry["contender"]]
        entry["levels"] = [dict(Counter(t)) for t in timelines]
    print(results.write("mixcache", payload))


if __name__ == "__main__":
    app()
