"""From which PSNR on a difference to the full run cannot be seen: ``python bench/measure_visible.py``.

Both demo families, on held-out captions: Forecast by the shipped calibration and by the prior at several budgets, and
fewer steps of the solver, whose errors are of another kind.  Of every clip or picture PSNR, SSIM, VMAF, flicker and
ColorVideoVDP's JOD to the full run; ColorVideoVDP where it is installed (``pip install 'vaccel[quality]'``).  The full
run's own VMAF stands beside it, since frames without motion are scored 97.43 at most.

``level`` is the lowest whole dB from which on every output that was measured stays within ``CRITERION``.
Writes bench/results/cpu/visible.json and, with --sheets, contact sheets of the full runs above those of each level.
"""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import imageio.v3 as iio
import numpy as np
import results
import torch
import typer

import vaccel
from vaccel.calibrate.samples import sample
from vaccel.demo import family, glyphs, image_family, shapes
from vaccel.evaluate import clips, fidelity, perceptual, vmaf

OUT = Path("out/visible")
STEPS, BUDGETS = 50, (6, 9, 13, 17, 22, 27, 35)
FPS = 12
#: What an output may lose without anybody seeing it.  VMAF: one just-noticeable difference below the full run's own;
#: JOD: of two clips 57 of 100 viewers would find the full run's better (50 by guessing, 75 for one JOD); flicker: one
#: 8-bit code value.
CRITERION = {"vmaf_lost": 6.0, "jod_lost": 0.25, "flicker": 1.0}
#: Half of it and less (53 of 100 viewers), for who wants a margin.
STRICT = {"vmaf_lost": 3.0, "jod_lost": 0.1, "flicker": 0.5}
app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)


class Bench:
    """A family's pipeline, its full runs and what they are compared with."""

    def __init__(self, name: str, captions: int):
        loaded = (family if name == "shapes" else image_family).load()
        held_out = shapes.held_out_captions if name == "shapes" else glyphs.held_out_captions
        self.name, self.pipe, self.captions = name, loaded.pipe, held_out(captions)
        self.call = {**loaded.call, "num_inference_steps": STEPS}
        self.artifact = loaded.folder / "forecast.json"

    def made(self, number: int, call: dict[str, Any], method: Any = None) -> np.ndarray:
        """The clip of a caption, [F, H, W, 3] in [0, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if method is None:
                found = sample(self.pipe, self.captions[number], number, call, output="pt")
            else:
                with vaccel.accelerate(self.pipe, method):
                    found = sample(self.pipe, self.captions[number], number, call, output="pt")
        found = found[0] if found.ndim == 5 else found
        return found.float().permute(0, 2, 3, 1).numpy().copy()

    def ways(self, budget: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """(name, method, call) of everything that makes a clip with so many computed steps."""
        yield "calibrated", vaccel.Forecast.load(self.artifact, budget), self.call
        yield "prior", vaccel.Forecast.prior(budget), self.call
        yield "fewer steps", None, {**self.call, "num_inference_steps": budget}

    def rows(self, number: int) -> list[dict[str, Any]]:
        """A caption by every way and budget."""
        full, found = self.made(number, self.call), []
        own = vmaf.vmaf(full, full, FPS)
        for budget in BUDGETS:
            for way, method, call in self.ways(budget):
                clip = self.made(number, call, method)
                row = {"family": self.name, "caption": number, "way": way, "budget": budget, "vmaf_of_full": own}
                row |= {m.name: m.measure(full, clip, FPS) for m in fidelity.METRICS.values() if not m.sound}
                found.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
                told = ", ".join(f"{k} {v}" for k, v in found[-1].items() if k not in ("family", "caption"))
                print(f"{self.name} {number}: {told}", flush=True)
        return found


def lost(row: dict[str, Any]) -> dict[str, float]:
    """What an output has lost, by the names of ``CRITERION``; without what was not measured."""
    found = {
        "vmaf_lost": row["vmaf_of_full"] - row["vmaf"] if row["vmaf"] is not None else None,
        "jod_lost": 10 - row["cvvdp"] if row["cvvdp"] is not None else None,
        "flicker": row["flicker"],
    }
    return {name: value for name, value in found.items() if value is not None}


def levels(rows: list[dict[str, Any]], criterion: dict[str, float]) -> dict[str, int]:
    """For each part of a criterion and for all: the lowest whole dB from which on every row keeps it."""

    def level(names: set[str]) -> int:
        over = [row["psnr"] for row in rows if any(v > criterion[n] for n, v in lost(row).items() if n in names)]
        return math.floor(max(over)) + 1 if over else math.floor(min(row["psnr"] for row in rows))

    return {**{name: level({name}) for name in criterion}, "all": level(set(criterion))}


def by_decibels(rows: list[dict[str, Any]], width: int = 3) -> list[dict[str, Any]]:
    """What was lost in bins of PSNR: mean and worst of each."""
    found = []
    for low in range(12, 90, width):
        here = [lost(row) for row in rows if low <= row["psnr"] < low + width]
        if here:
            told = {n: [r[n] for r in here if n in r] for n in CRITERION}
            found.append({"from": low, "to": low + width, "outputs": len(here)})
            found[-1] |= {n: [round(statistics.fmean(v), 3), round(max(v), 3)] for n, v in told.items() if v}
    return found


def by_budget(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """PSNR of every way by computed steps: mean and worst over the captions."""
    found: dict[str, dict[str, list[float]]] = {}
    for way in dict.fromkeys(row["way"] for row in rows):
        for budget in BUDGETS:
            psnr = [row["psnr"] for row in rows if (row["way"], row["budget"]) == (way, budget)]
            found.setdefault(way, {})[str(budget)] = [round(statistics.fmean(psnr), 2), round(min(psnr), 2)]
    return found


@app.command()
def measure(
    captions: Annotated[int, typer.Option(help="Held-out captions of each family.")] = 6,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    sheets: Annotated[bool, typer.Option("--sheets", help="Write contact sheets only.")] = False,
) -> None:
    """Measures what is not in out/visible/rows.json yet and writes the JSON."""
    torch.set_num_threads(threads)
    OUT.mkdir(parents=True, exist_ok=True)
    kept = OUT / "rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for name in ("shapes", "glyphs"):
        bench = Bench(name, captions)
        if sheets:
            _sheets(bench, rows)
            continue
        for number in range(captions):
            if not any((r["family"], r["caption"]) == (name, number) for r in rows):
                rows += bench.rows(number)
                kept.write_text(json.dumps(rows))
    if sheets:
        return
    installed = perceptual.cvvdp_missing() or f"cvvdp {metadata.version('cvvdp')}, {perceptual.DISPLAY}, {FPS} Hz"
    payload: dict[str, Any] = {"criterion": CRITERION, "strict": STRICT, "cvvdp": installed, "vmaf": vmaf.MODEL}
    payload |= {"level": levels(rows, CRITERION), "strict_level": levels(rows, STRICT)}
    for name in ("shapes", "glyphs"):
        part = [row for row in rows if row["family"] == name]
        found = {"level": levels(part, CRITERION), "strict_level": levels(part, STRICT)}
        payload[name] = found | {"by_budget": by_budget(part), "by_dB": by_decibels(part)}
    results.write("visible", {**payload, "rows": rows})
    print(json.dumps(payload, indent=1))


def _sheets(bench: Bench, rows: list[dict[str, Any]]) -> None:
    """Each caption's full run above Forecast's output that is nearest to some levels; the difference times 8 below."""
    for target in (30, 36, 42, 48):
        pairs = []
        for number in range(len(bench.captions)):
            own = [r for r in rows if (r["family"], r["caption"]) == (bench.name, number) and r["way"] != "fewer steps"]
            near = min(own, key=lambda row: abs(row["psnr"] - target))
            method = next(m for way, m, _ in bench.ways(near["budget"]) if way == near["way"])
            full, clip = bench.made(number, bench.call), bench.made(number, bench.call, method)
            pairs.append([full, clip, np.clip(0.5 + 8 * (clip - full), 0, 1)])
            print(bench.name, target, number, near["psnr"], flush=True)
        columns = 6 if len(pairs[0][0]) > 1 else 1
        scale = 3 if columns > 1 else 5
        sheets = [clips.contact_sheet(pair, columns=columns, scale=scale) for pair in pairs]
        halves = [np.concatenate(sheets[k::2], axis=0) for k in (0, 1)] if columns > 1 else [np.concatenate(sheets, 1)]
        iio.imwrite(OUT / f"{bench.name}_{target}.png", np.concatenate(halves, axis=1))


if __name__ == "__main__":
    app()
