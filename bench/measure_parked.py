"""What it costs in fidelity to keep hidden states in fewer bits, on the demo family and held-out captions.

    python bench/measure_parked.py [--captions 6]

For every method that keeps hidden states, with each dtype: PSNR to the full model's clips and to the same method's with
nothing lost, the error that the trace says, and the bytes held; -> bench/results/cpu/parked.json.
"""

from __future__ import annotations

import statistics
from typing import Annotated, Any

import numpy as np
import results
import torch
import typer

import vaccel
from vaccel.cache.buffers import HOST
from vaccel.demo import family, shapes
from vaccel.evaluate.metrics import psnr

STEPS = 50
COMPUTED = (0, 1, 2, 4, 7, 11, 16, 22, 29, 37, 45, 49)
METHODS = {
    "LeMiCa's residual of the blocks": vaccel.Schedule(COMPUTED, num_steps=STEPS),
    "MixCache, states": vaccel.MixCache(),
}
KEPT = {
    "as computed (float32)": {},
    "host memory": {"cache_device": "cpu"},
    "bfloat16": {"cache_dtype": torch.bfloat16},
    "float8_e4m3fn": {"cache_dtype": torch.float8_e4m3fn},
    "float8_e5m2": {"cache_dtype": torch.float8_e5m2},
}


def main(captions: Annotated[int, typer.Option(help="How many held-out captions.")] = 6) -> None:
    loaded = family.load()
    texts, call = shapes.held_out_captions(captions), {**loaded.call, "num_inference_steps": STEPS}

    def clips() -> list[np.ndarray]:
        made = []
        for number, text in enumerate(texts):
            generator = torch.Generator().manual_seed(number)
            made.append(np.asarray(loaded.pipe(text, generator=generator, output_type="np", **call).frames[0]))
        return made

    full, rows = clips(), []
    for name, method in METHODS.items():
        exact: list[np.ndarray] = []
        for kept, given in KEPT.items():
            with vaccel.accelerate(loaded.pipe, method, **given) as handle:
                plan, found = handle.memory_plan(**call), clips()
                held, notes = handle.nbytes, handle.trace.notes
            exact = exact or found
            lost = [float(note.split()[-1]) for note in notes if "relative L2 error" in note]
            row: dict[str, Any] = {
                "method": name, "kept": kept, "error": lost[0] if lost else 0.0, "device_bytes": held,
                "host_bytes": plan.get(HOST, 0),
                "psnr_full": _stated([psnr(a, b) for a, b in zip(full, found, strict=True)]),
                "psnr_exact": _stated([min(psnr(a, b), 200.0) for a, b in zip(exact, found, strict=True)]),
            }  # fmt: skip
            print(row, flush=True)
            rows.append(row)
    print(results.write("parked", {"steps": STEPS, "rows": rows}, command=f"measure_parked.py --captions {captions}"))


def _stated(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "worst": round(min(values), 2)}


if __name__ == "__main__":
    typer.run(main)
