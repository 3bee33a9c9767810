"""Whether ``Auto(psnr=...)`` keeps its word, and what that costs: ``python bench/measure_promise.py measure``.

Of every setting (family, solver, T): the shipped calibration, held-out captions, several fidelities asked for, the
guard as by default.  Beside the share of runs that reach one, and their mean cost, stands the cheapest budget, the same
for all captions, with which 95 % of them do: found afterwards, among budgets in steps of two or three, PSNR on straight
lines between them.  The diagram (``docs/reliability.png``) has the share of runs that reach what is promised
for 50 to 95 % of them.  Every budget's runs are kept: what is stopped goes on, and another rule for promises costs the
budgets that it asks for.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import results
import torch
import typer
from measure_levels import OUT, Bench, scheduler

import vaccel
from vaccel.calibrate.samples import sample
from vaccel.integrations.diffusers.schedulers import flow_of
from vaccel.methods.auto import GUARD
from vaccel.planning.calibration import calibration

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
#: (family, solver, T, shift)
SETTINGS = [
    ("shapes", "unipc", 50, 3.0), ("shapes", "unipc", 30, 3.0), ("shapes", "euler", 40, 3.0),
    ("shapes", "dpm++", 40, 3.0), ("glyphs", "ddim", 50, 0.0), ("glyphs", "ddim", 30, 0.0),
    ("glyphs", "dpm++ karras", 50, 0.0), ("glyphs", "euler karras", 50, 0.0),
]  # fmt: skip
#: Budgets of the fixed runs, as shares of T.
GRID = (0.14, 0.18, 0.22, 0.26, 0.34, 0.44, 0.54, 0.64)
ASKED = (32.0, 36.0, 40.0, 44.0, 48.0)
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
DIAGRAM = Path("docs/reliability.png")


class Setting:
    """One solver and number of steps, with its full runs."""

    def __init__(self, bench: Bench, solver: str, steps: int, shift: float, kept: Path):
        self.bench, self.steps, self.kept, pipe = bench, steps, kept, bench.pipe
        pipe.scheduler = scheduler(solver, shift)
        self.call = {**bench.call, "num_inference_steps": steps}
        pipe.scheduler.set_timesteps(steps)
        self.flow = flow_of(pipe.scheduler)
        self.known = calibration(bench.artifact).at(self.flow.levels)
        known = json.loads(kept.read_text()) if kept.exists() else {}
        known = known if known.get("captions") == len(bench.held_out) else {}
        self.found: dict[int, list[float]] = {int(b): found for b, found in known.get("psnr", {}).items()}
        self.guarded = {int(b): found for b, found in known.get("guarded", {}).items()}

    @functools.cached_property
    def full(self) -> list[torch.Tensor]:
        return [self.clip(n) for n in range(len(self.bench.held_out))]

    def clip(self, number: int) -> torch.Tensor:
        return sample(self.bench.pipe, self.bench.held_out[number], number, self.call, output="pt").double()

    def psnr(self, budget: int) -> list[float]:
        """Of every caption at so many computed steps."""
        if budget not in self.found:
            self.found[budget], _ = self._run(vaccel.Forecast.load(self.bench.artifact, budget))
            self.keep({})
        return self.found[budget]

    def with_guard(self, budget: int) -> tuple[list[float], float]:
        """The same with the guard, and the mean number of computed steps."""
        if budget not in self.guarded:
            self.guarded[budget] = self._run(vaccel.Forecast.load(self.bench.artifact, budget, guard=GUARD))
            self.keep({})
        psnr, steps = self.guarded[budget]
        return psnr, steps

    def _run(self, method: vaccel.Method) -> tuple[list[float], float]:
        found, steps, clips = [], [], self.full  # made outside, in full
        with warnings.catch_warnings(), vaccel.accelerate(self.bench.pipe, method) as handle:
            warnings.simplefilter("ignore")
            for n, full in enumerate(clips):
                error = float((self.clip(n) - full).square().mean())
                found.append(round(-10 * math.log10(max(error, 1e-10)), 2))
                steps.append(handle.trace.timeline().count("F"))
        return found, round(statistics.fmean(steps), 3)

    def keep(self, row: dict[str, Any]) -> None:
        psnr = {str(b): self.found[b] for b in sorted(self.found)}
        found = {"captions": len(self.bench.held_out), "psnr": psnr, "guarded": self.guarded}
        self.kept.write_text(json.dumps({**found, **row}))

    def row(self) -> dict[str, Any]:
        grid = sorted({max(2, round(share * self.steps)) for share in GRID})
        table = {budget: self.psnr(budget) for budget in grid}
        asked = [self.asked(psnr, table) for psnr in ASKED]
        fidelity, shares = self.known.fidelity, []
        for share in SHARES:
            reached = []
            for budget, found in table.items():
                promised = fidelity.at(self.known.plan(budget).predicted, share)[1]
                reached.append(statistics.fmean(p >= promised for p in found))
            shares.append(statistics.fmean(reached))
        return {"asked": asked, "shares": shares}

    def asked(self, psnr: float, table: dict[int, list[float]]) -> dict[str, Any]:
        """What Auto chooses for a PSNR, who reaches it, and the cheapest fixed budget that 95 % reach it with."""
        auto = vaccel.Auto(psnr=psnr, artifacts=(str(self.bench.artifact),))
        candidates = auto.candidates(list(auto.artifacts), self.steps, self.flow)
        chosen = auto.reaching(candidates)
        budget = chosen.budget if chosen is not None else self.steps
        found, steps = self.with_guard(budget) if budget < self.steps else ([100.0] * len(self.full), budget)
        grid, each = list(table), np.array(list(table.values())).T
        budgets = range(grid[0], grid[-1] + 1)
        shares = {b: np.mean([np.interp(b, grid, curve) >= psnr for curve in each]) for b in budgets}
        cheapest = next((b for b, share in shares.items() if share >= 0.95), None)
        return {
            "psnr": psnr, "budget": budget, "steps": steps, "promised": chosen is not None, "cheapest": cheapest,
            "reached": statistics.fmean(p >= psnr for p in found), "mean": statistics.fmean(found), "worst": min(found),
        }  # fmt: skip


@app.command()
def measure(
    captions: Annotated[int, typer.Option(help="Held-out captions.")] = 20,
    only: Annotated[str | None, typer.Option(help="One family.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Measures every setting, then writes the JSON and the diagram."""
    torch.set_num_threads(threads)
    OUT.mkdir(parents=True, exist_ok=True)
    benches: dict[str, Bench] = {}
    for family, solver, steps, shift in SETTINGS:
        kept = OUT / f"promise_{family}_{solver}_{steps}.json"
        if only not in (None, family):
            continue
        if family not in benches:
            benches[family] = Bench(family, captions)
        setting = Setting(benches[family], solver, steps, shift, kept)
        row = setting.row()
        setting.keep({"family": family, "solver": solver, "steps": steps, **row})
        told = [f"{a['psnr']:g} dB: {a['steps']} (cheapest {a['cheapest']}) {a['reached']:.0%}" for a in row["asked"]]
        print(family, solver, steps, "  ".join(told), flush=True)
    if only is None:
        write()


@app.command()
def write() -> None:
    """The JSON and the diagram of what was measured."""
    paths = [OUT / f"promise_{family}_{solver}_{steps}.json" for family, solver, steps, _ in SETTINGS]
    rows = [row for path in paths if path.exists() and "asked" in (row := json.loads(path.read_text()))]
    results.write("promise", {"rows": rows, "shares": SHARES}, command="measure_promise.py measure")
    draw(rows)


def draw(rows: list[dict[str, Any]]) -> None:
    """The reliability diagram: promised and observed shares, a line a setting."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4.2))
    axes.plot([0.45, 1], [0.45, 1], color="0.6", linestyle="--", label="as promised")
    for row in rows:
        style = "-" if row["family"] == "shapes" else ":"
        label = f"{row['family']}, {row['solver']}, T = {row['steps']}"
        axes.plot(SHARES, row["shares"], style, marker=".", label=label)
    axes.set(xlabel="share of runs that is promised a PSNR", ylabel="share of runs that reach it", ylim=(0.4, 1.02))
    axes.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    DIAGRAM.parent.mkdir(exist_ok=True)
    figure.savefig(DIAGRAM, dpi=110)


if __name__ == "__main__":
    app()
