"""One run of every method, drawn as `vaccel explain` draws it: ``python bench/method_pictures.py [NAME ...]``.

Of the shipped family and its first held-out caption, into docs/pictures/runs/.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch

import vaccel
from vaccel.demo import family, shapes
from vaccel.explain import explanation
from vaccel.explain.plot import svg

OUT = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "runs"
STEPS = 50
#: page -> the method, given the folder of the family's calibrations.
RUNS = {
    "auto": lambda at: vaccel.Auto(speedup=2.5, artifacts=(str(at / "forecast.json"),)),
    "forecast": lambda at: vaccel.Forecast.load(at / "forecast.json", budget=17, guard=2.0),
    "direction-magnitude": lambda _: vaccel.DirectionMagnitude(threshold=0.005),
    "srdiffusion": lambda _: vaccel.SRDiffusion(threshold=0.01),
    "teacache": lambda at: vaccel.TeaCache.load(at / "teacache.json", threshold=0.1),
    "lemica": lambda at: vaccel.LeMiCa.load(at / "lemica.json", budget=17),
    "mixcache": lambda at: vaccel.MixCache.load(at / "mixcache.json"),
    "easycache": lambda _: vaccel.EasyCache(threshold=0.05),
    "dual-expert": lambda at: vaccel.DualExpert(folder=str(at / "dual_expert"), steps=8),
    "schedule": lambda _: vaccel.Schedule.from_timeline("FFFF" + "prF" * 15 + "F"),
}


def main() -> None:
    shipped = family.load()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or RUNS:
        method = RUNS[name](shipped.folder)
        steps = method.steps if name == "dual-expert" else STEPS
        small = shipped.small if method.needs_small else None
        with vaccel.accelerate(shipped.pipe, method, small=small) as handle:
            shipped.pipe(
                shapes.held_out_captions(1)[0], generator=torch.Generator().manual_seed(0),
                **{**shipped.call, "num_inference_steps": steps},
            )  # fmt: skip
        (OUT / f"{name}.svg").write_text(svg(explanation(handle.trace)))
        print(name, handle.trace.timeline(), flush=True)


if __name__ == "__main__":
    main()
