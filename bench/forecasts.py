"""Forecast as ``measure_forecast.py`` measures it: its calibrations, and its variants at every budget.

python bench/forecasts.py calibrate --out out/forecast      # resumable
python bench/forecasts.py measure --artifacts out/forecast  # resumable; several processes may share a log (--only)
python bench/forecasts.py write                             # bench/results/cpu/forecast.json
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import results
import torch
import typer
from measure_forecast import BUDGETS, PROMPTS, Bench, read_log, show, summary
from rivals.contenders import STEPS, Reader

from vaccel import demo
from vaccel.calibrate import calibrate_forecast
from vaccel.demo.family import calibration_captions
from vaccel.planning import artifacts
from vaccel.planning.calibration import Calibration, packed

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
Out = Annotated[Path, typer.Option(help="Folder of the calibrations.")]
Log = Annotated[Path, typer.Option(help="One JSON line a run and a result.")]
SAMPLES = (1, 2, 8, 32)
FOLLOWED = 8  # samples whose errors are followed to the end
OURS = "artifact='forecast.json', objective='leximax'"
FEWER = (27, 17, 9)  # budgets of the ablations
WHOLE = ("Forecast", "sum of squares", "without calibration", "without correction")  # at every budget
#: name -> arguments of Forecast.load; "shaped" for the uncalibrated path
VARIANTS: dict[str, str] = {
    "Forecast": OURS,
    "sum of squares": "artifact='forecast.json', objective='squares'",
    "without calibration": "shaped",
    "without correction": f"{OURS}, correct=False",
    "sum": "artifact='forecast.json', objective='sum'",
    "K = 1": f"{OURS}, order=1",
    "K = 3": f"{OURS}, order=3",
    "without error growth": f"{OURS}, error_growth=False",
    "typical error growth": "artifact='typical.json', objective='leximax'",
    "per tensor": f"{OURS}, per='tensor'",
    "per band, without correction": "artifact='banded.json', objective='leximax', per='band'",
    "per channel and band, without correction": "artifact='banded.json', objective='leximax', per='channel, band'",
    "1 sample": "artifact='samples_1.json', objective='leximax'",
    "2 samples": "artifact='samples_2.json', objective='leximax'",
    "32 samples": "artifact='samples_32.json', objective='leximax'",
    "guard": f"{OURS}, guard=2.0",
}


def text_of(name: str, budget: int) -> str:
    """The contender as ``vaccel compare`` reads it."""
    arguments = VARIANTS[name]
    if arguments == "shaped":
        from vaccel import Forecast

        return f"Forecast({list(Forecast.shaped(STEPS, budget).full_steps)}, num_steps={STEPS})"
    return f"Forecast({arguments}, budget={budget})"


def collapsed(path: Path, out: Path, *, error_growth: bool = True) -> None:
    """The same calibration without frequency bands: the bands are orthogonal, so their products add up."""
    data = artifacts.read(path, "forecast")
    known = Calibration(data)
    products = known.gram.products.sum(axis=0) * len(data["samples"])
    own = {
        key: {**s, "bands": 1, "error_growth": s["error_growth"] if error_growth else {}}
        for key, s in data["samples"].items()
    }
    artifacts.write(out, {**data, "bands": 1, "samples": own, "products": packed(products)})


@app.command()
def calibrate(out: Out = Path("out/forecast")) -> None:
    """The calibration that ships with the family; and of 1, 2, 8 and 32 captions, with bands and without."""
    torch.set_num_threads(1)
    family, began = demo.load(), time.perf_counter()
    call, captions = {"num_inference_steps": STEPS, **family.call}, calibration_captions(max(SAMPLES))
    whole = out / "growing.json"

    def report(done: int, total: int, what: str) -> None:
        print(f"{time.perf_counter() - began:6.0f} s  {done} of {total}  {what}", flush=True)

    calibrate_forecast(family.pipe, captions[:FOLLOWED], out / "forecast.json", call=call, progress=report)
    for count in SAMPLES:
        more = {} if count <= FOLLOWED else {"tails": 0}
        calibrate_forecast(family.pipe, captions[:count], whole, call=call, bands=2, trials=(), progress=report, **more)
        shutil.copy(whole, out / f"banded_{count}.json")
    derive(out)


@app.command()
def derive(out: Out = Path("out/forecast")) -> None:
    """The variants' artifacts, from those with bands."""
    for count in SAMPLES:
        if (out / f"banded_{count}.json").exists():
            collapsed(out / f"banded_{count}.json", out / f"samples_{count}.json")
    shutil.copy(out / f"banded_{FOLLOWED}.json", out / "banded.json")
    collapsed(out / f"banded_{FOLLOWED}.json", out / "typical.json", error_growth=False)


@app.command()
def measure(
    artifacts: Annotated[Path, typer.Option(help="Folder of the calibrations.")] = Path("out/forecast"),
    log: Log = Path("out/forecast.jsonl"),
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = PROMPTS,
    only: Annotated[list[str] | None, typer.Option(help="A variant; may be given again.")] = None,
) -> None:
    """Every variant at its budgets, on the prompts that the rivals are measured on."""
    torch.set_num_threads(1)
    bench, began = Bench(log, prompts), time.perf_counter()
    bench.read = Reader(bench.pipe, artifacts, bench.call)
    for name in only or VARIANTS:
        for budget in BUDGETS if name in WHOLE else FEWER:
            if (name, budget) in bench.done:
                continue
            text = text_of(name, budget)
            line = {"rival": name, "budget": budget, "prompts": prompts, "contender": text} | summary(bench, text)
            bench.append(line)
            shown = {k: line[k] for k in ("psnr", "psnr_worst", "cost", "caption")}
            print(f"{time.perf_counter() - began:6.0f} s  {name} at {budget}: {shown}", flush=True)


@app.command()
def write(
    artifacts: Annotated[Path, typer.Option(help="Folder of the calibrations.")] = Path("out/forecast"),
    log: Log = Path("out/forecast.jsonl"),
) -> None:
    """The JSON, from a log; and the table."""
    lines = read_log(log)
    latest = {(r["rival"], r["budget"]): r for r in lines if "rival" in r and r.get("prompts") == PROMPTS}
    order = list(VARIANTS)
    table = sorted(latest.values(), key=lambda r: (order.index(r["rival"]), -r["budget"]))
    chosen = {r["contender"] for r in table}
    runs = {(r["contender"], r["prompt"]): r for r in lines if "psnr" in r and isinstance(r.get("prompt"), int)}
    payload = {
        "summary": table,
        "rows": [run for key, run in sorted(runs.items()) if key[0] in chosen],
        "calibration": cost(artifacts / "forecast.json"),
    }
    print(show(table))
    print(results.write("forecast", payload, command="forecasts.py calibrate, measure, write"))


def cost(path: Path) -> dict[str, Any]:
    """Forwards and seconds of a calibration by sample, and the error growth that it measured."""
    data = artifacts.read(path, "forecast")
    samples = [s for s in data["samples"].values() if s["error_growth"]]
    return {
        "samples": len(samples),
        "forwards_recording": 2 * data["num_steps"],
        "forwards": [s["forwards"] for s in samples],
        "seconds_recording": [round(s["seconds_recording"], 1) for s in samples],
        "seconds": [round(s["seconds"], 1) for s in samples],
        "error_growth_samples": [s["error_growth"] for s in samples],
        "error_growth": Calibration(data).error_growth,
        "trials": [s["trials"] for s in samples if "trials" in s],
    }


if __name__ == "__main__":
    app()
