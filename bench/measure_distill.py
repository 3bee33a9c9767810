"""The dual expert of the demo family and the paper's ablations: ``python bench/measure_distill.py train|quality|...``.

``train``: all variants of arXiv 2506.03123's Table 3, the same iterations for each expert (``single``: as many as both
together), into a folder, by ``vaccel distill``; resumable.  ``quality``: what each of them makes in 4 and 8 steps,
beside the teacher in 50, 4 and 8.  ``cost``: memory of the experts and of the training, and what changing over costs.
``diagnosis``: Figure 2.  Held-out captions; the training saw others.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import imageio.v3 as iio
import numpy as np
import results
import torch
import typer
from rich.progress import track
from scipy import ndimage

import vaccel
from vaccel import demo
from vaccel.demo.checker import check
from vaccel.demo.shapes import held_out_captions
from vaccel.evaluate import metrics
from vaccel.evaluate.clips import contact_sheet

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
Folder = Annotated[Path, typer.Option(help="Folder of the data and of all variants.")]

#: What every training of the demo family has; the rates were chosen by short trainings.
COMMON = {
    "batch": 4, "shift": 5, "guidance": 4, "ema": 0.95, "head-width": 256, "head-rate": 6e-4, "rank": 16, "alpha": 32,
    "sample-every": 200, "save-every": 50,
}  # fmt: skip
SEMANTIC = ["--stage", "semantic", "--rate", "1e-4"]
LORA, FULL = (["--stage", "detail", "--rate", rate] for rate in ("3e-4", "1e-4"))
#: Name -> (what of Table 3 it has, stages: arguments beside the common ones).  A detail stage stands on the semantic
#: expert of the folder named.
VARIANTS: dict[str, tuple[str, list[tuple[str, list[str]]]]] = {
    "single": ("one model", [("", ["--stage", "single", "--rate", "1e-4"])]),
    "od": ("OD: two full experts", [("od_semantic", [*FULL, "--gan", "0", "--sharing", "full"])]),
    "od_pe": ("OD PE", [("od_semantic", [*LORA, "--gan", "0"])]),
    "od_pe_tc": ("OD PE TC", [("tc_semantic", [*LORA, "--gan", "0"])]),
    "od_pe_gf": ("OD PE GF", [("od_semantic", LORA)]),
    "all": ("OD PE TC GF", [("tc_semantic", LORA)]),
}
SEMANTICS = {"od_semantic": [*SEMANTIC, "--temporal", "0"], "tc_semantic": SEMANTIC}


def distill(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "vaccel", "distill", *arguments], check=True)


@app.command()
def train(
    folder: Folder = Path("out/dcm"),
    iterations: Annotated[int, typer.Option(help="Of each expert.")] = 400,
    clips: Annotated[int, typer.Option(help="Training clips.")] = 1024,
    only: Annotated[list[str] | None, typer.Option(help="Variants to train; all if left out.")] = None,
) -> None:
    """Train the variants; whatever is done already is left."""
    data = str(folder / "data")
    distill("prepare", "demo", "--data", "demo", "--count", str(clips), "--out", data)
    common = ["--data", data, *(str(a) for k, v in COMMON.items() for a in (f"--{k}", v))]
    chosen = only or list(VARIANTS)
    for name in {stage for v in chosen for stage, _ in VARIANTS[v][1] if stage}:
        distill("demo", *common, *SEMANTICS[name], "--iterations", str(iterations), "--out", str(folder / name))
    for variant in chosen:
        (semantic, arguments), out = VARIANTS[variant][1][0], folder / variant
        steps = iterations if semantic else 2 * iterations
        if semantic:
            out.mkdir(parents=True, exist_ok=True)
            for name in ("semantic.safetensors", "dual_expert.json"):
                if not (out / name).is_file():
                    (out / name).write_bytes((folder / semantic / name).read_bytes())
        distill("demo", *common, *arguments, "--iterations", str(steps), "--out", str(out))


def motion(clip: np.ndarray) -> tuple[float, float]:
    """Mean |change| from frame to frame, and mean |change of the change|: how much moves, and how unevenly."""
    change = np.diff(clip, axis=0)
    return float(np.abs(change).mean()), float(np.abs(np.diff(change, axis=0)).mean())


def sharpness(clip: np.ndarray) -> float:
    """Variance of the Laplacian of the gray frames."""
    return float(np.mean([ndimage.laplace(frame.mean(axis=-1)).var() for frame in clip]))


class Measured:
    """Clips of one way to sample, against the teacher's."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, clip: np.ndarray, caption: str, seconds: float, teacher: np.ndarray, teacher_seconds: float) -> None:
        (moves, jerk), (their_moves, their_jerk) = motion(clip), motion(teacher)
        self.rows.append({
            "caption": float(check(clip, caption).correct), "speedup": teacher_seconds / seconds, "seconds": seconds,
            "change": moves / their_moves, "unevenness": jerk / their_jerk,
            "sharpness": sharpness(clip) / sharpness(teacher), "psnr": min(metrics.psnr(teacher, clip), 100.0),
        })  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Means of shares and PSNR, medians and quartiles of ratios."""
        out: dict[str, Any] = {k: statistics.fmean(r[k] for r in self.rows) for k in ("caption", "psnr")}
        for name in ("speedup", "change", "unevenness", "sharpness"):
            out[name] = [float(q) for q in np.quantile([r[name] for r in self.rows], [0.25, 0.5, 0.75])]
        return out


def sampled(pipe: Any, caption: str, **call: Any) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    frames = pipe(caption, generator=torch.Generator().manual_seed(0), output_type="np", **call).frames[0]
    return np.asarray(frames, dtype=np.float32), time.perf_counter() - start


@app.command()
def quality(
    folder: Folder = Path("out/dcm"),
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = 32,
    shipped: Annotated[bool, typer.Option(help="The shipped experts as well.")] = True,
) -> None:
    """Caption accuracy, motion, sharpness and wall time of every variant and of the teacher in few steps."""
    family, captions = demo.load(), held_out_captions(prompts)
    pipe, call = family.pipe, family.call
    folders = {name: folder / name for name in VARIANTS if (folder / name / "dual_expert.json").is_file()}
    if shipped and (family.folder / "dual_expert").is_dir():
        folders["shipped"] = family.folder / "dual_expert"
    found: dict[str, Measured] = {}
    sheets: dict[str, list[np.ndarray]] = {}
    for number, caption in enumerate(track(captions, "sampling")):
        teacher, _ = sampled(pipe, caption, num_inference_steps=50, **call)
        clips = {"teacher 50": (teacher, 0.0)}
        again, full_seconds = sampled(pipe, caption, num_inference_steps=50, **call)
        clips["teacher 50"] = (again, full_seconds)
        for steps in (4, 8):
            clips[f"teacher {steps}"] = sampled(pipe, caption, num_inference_steps=steps, **call)
            for name, experts in folders.items():
                with vaccel.accelerate(pipe, vaccel.DualExpert(experts, steps=steps)):
                    clips[f"{name} {steps}"] = sampled(pipe, caption, num_inference_steps=steps, **call)
        for name, (clip, seconds) in clips.items():
            found.setdefault(name, Measured()).add(clip, caption, seconds, teacher, full_seconds)
            if number < 6:
                sheets.setdefault(name, []).append(clip)
    out = Path("out/distill")
    out.mkdir(parents=True, exist_ok=True)
    for name, clips in sheets.items():
        iio.imwrite(out / f"{name.replace(' ', '_')}.png", contact_sheet(clips))
    described = {n: json.loads((f / "dual_expert.json").read_text())["training"] for n, f in folders.items()}
    payload = {
        "prompts": captions, "summary": {n: m.summary() for n, m in found.items()}, "training": described,
        "variants": {n: v[0] for n, v in VARIANTS.items()}, "rows": {n: m.rows for n, m in found.items()},
    }  # fmt: skip
    for name, m in payload["summary"].items():
        print(f"{name:14s} caption {m['caption']:.2f} psnr {m['psnr']:.1f} "
              + " ".join(f"{k} {m[k][1]:.2f}" for k in ("speedup", "change", "unevenness", "sharpness")))  # fmt: skip
    print(results.write("distill", payload))


@app.command()
def cost(folder: Folder = Path("out/dcm"), runs: int = 20) -> None:
    """Bytes of the experts, seconds of each step merged and not, and the training's peak memory."""
    family = demo.load()
    pipe, caption = family.pipe, held_out_captions(1)[0]
    base = sum(p.numel() * p.element_size() for p in pipe.transformer.parameters())
    payload: dict[str, Any] = {"base_bytes": base, "two_full_bytes": 2 * base, "experts": {}}
    for merged in (False, True):
        with vaccel.accelerate(pipe, vaccel.DualExpert(family.folder / "dual_expert", merged=merged)) as handle:
            steps = []
            for _ in range(runs + 2):
                sampled(pipe, caption, **family.call)
                steps.append([s.seconds for s in handle.trace.steps])
            held = handle.expert_bytes
        quartiles = np.quantile(np.array(steps[2:]), [0.25, 0.5, 0.75], axis=0).T.tolist()
        payload["experts"]["merged" if merged else "lora"] = {**held, "step_seconds": quartiles}
    payload["switch"] = switching(pipe, family, runs)
    payload["training"] = {
        "no checkpointing": training_peak(folder, []), "checkpointing": training_peak(folder, ["checkpointing"])
    }  # fmt: skip
    print(json.dumps(payload, indent=1))
    print(results.write("distill_cost", payload))


def switching(pipe: Any, family: Any, runs: int) -> dict[str, Any]:
    """A step of eight, the detail expert's first beside its others, and the choice of an expert with no forward in it.

    Steps: quartiles of seconds over all runs.  The choice: quartiles of the seconds that a call takes when the expert
    changes with every call, and when it stays.
    """
    first, others = [], []
    quartiles = [0.25, 0.5, 0.75]
    with vaccel.accelerate(pipe, vaccel.DualExpert(family.folder / "dual_expert", steps=8)) as handle:
        for _ in range(2 * runs):
            sampled(pipe, held_out_captions(1)[0], **family.call)
            seconds = [s.seconds for s in handle.trace.steps]
            first.append(seconds[4])
            others += seconds[5:]
        large = handle._session.stages[0].large
        for model in large.experts:
            model.full = lambda inputs: None
        choice = {name: per_call(lambda i, every=every: large.expert(None, i // every % 2)) for name, every in
                  (("changing", 1), ("staying", 10**9))}  # fmt: skip
        for model in large.experts:
            del model.full
    return {
        "first_detail_step": np.quantile(first, quartiles).tolist(),
        "other_detail_steps": np.quantile(others, quartiles).tolist(),
        "choice": choice,
    }


def per_call(function: Any, calls: int = 1000, repeats: int = 50) -> list[float]:
    """Quartiles of the seconds a call ``function(i)`` takes."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for i in range(calls):
            function(i)
        times.append((time.perf_counter() - start) / calls)
    return [float(q) for q in np.quantile(times, [0.25, 0.5, 0.75])]


_TRAINS = """
import resource, sys, torch
from pathlib import Path
from vaccel import demo
from vaccel.distill.settings import Distillation
from vaccel.distill.stages import train
pipe = demo.load().pipe
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
settings = Distillation("semantic", split=35, shift=5.0, guidance=4.0, batch=16, iterations=2)
train(pipe, sys.argv[1], sys.argv[2], settings, checkpointing=sys.argv[3] == "checkpointing")
print("peak", before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def training_peak(folder: Path, options: list[str]) -> dict[str, int]:
    """Bytes of the process at its largest, before and in two iterations of 16 clips at once."""
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", _TRAINS, str(folder / "data"), out, *(options or ["plain"])]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, peak = said.split("peak")[1].split()[:2]
    return {"before": int(before), "peak": int(peak)}


@app.command()
def diagnosis(folder: Folder = Path("out/dcm"), out: Path = Path("out/dcm/diagnosis.json")) -> None:
    """Loss and gradient of the single model over the noise levels, before its training and after."""
    trained = ["--experts", str(folder / "single")] if (folder / "single" / "dual_expert.json").is_file() else []
    distill("diagnose", "demo", "--data", str(folder / "data"), "--out", str(out), "--shift", "5", "--guidance", "4",
            *trained)  # fmt: skip
    print(results.write("distill_diagnosis", json.loads(out.read_text())))


if __name__ == "__main__":
    app()
