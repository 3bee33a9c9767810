"""The jobs that ``kills.py`` kills, on tiny pipelines."""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path
from typing import Any

from kill_tries import Job, Run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import matplotlib.figure
import tiny
import torch
import transformers

import vaccel.evaluate
from vaccel import calibrate, cli
from vaccel.distill import plots, prepare, stages
from vaccel.distill.settings import Distillation

#: Imported for the forks to have; what the jobs name.
PRELOADED = (matplotlib.figure, transformers, plots, vaccel.evaluate)

PROMPTS = ["a red cat runs", "a blue dog", "a cat sleeps"]
OTHERS = ["a dog runs", "a blue cat"]
STEPS = 6
CALL = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 8, "num_inference_steps": STEPS}
SIZES = [part for k, v in CALL.items() if k != "num_inference_steps" for part in ("--call", f"{k}={v}")]
TRAINING = {
    "split": 6, "points": 10, "shift": 5.0, "guidance": 3.0, "lag": 1, "rank": 2, "alpha": 4, "head_width": 32,
    "batch": 2, "rate": 1e-3, "detail_rate": 1e-3, "head_rate": 1e-3, "iterations": 12, "detail_iterations": 12,
}  # fmt: skip


@functools.cache
def pipe() -> Any:
    """The pipeline that the forks find ready."""
    torch.set_num_threads(1)
    return tiny.wan_pipeline()


def command(*arguments: object) -> None:
    cli.app([str(a) for a in arguments], standalone_mode=True)


def calibration(function: Any, name: str, prompts: list[str], path: Path, **options: Any) -> None:
    function(pipe(), prompts, path / f"{name}.json", call=CALL, **options)


FORECAST = functools.partial(calibration, calibrate.calibrate_forecast, "forecast", tails=2)
LEMICA = functools.partial(calibration, calibrate.calibrate_lemica, "lemica", max_gap=3)
MIXCACHE = functools.partial(calibration, calibrate.calibrate_mixcache, "mixcache")
TEACACHE = functools.partial(calibration, calibrate.calibrate_teacache, "teacache")


def _clips(count: int = 5) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(f"a cat {i % 2}", torch.rand(9, 32, 32, 3, generator=generator)) for i in range(count)]


def data(folder: Path) -> None:
    call = {k: v for k, v in CALL.items() if k != "num_inference_steps"}
    prepare(pipe(), _clips(), folder / "data", call={**call, "guidance_scale": 3.0}, shard_size=2)


def train(shared: Path, stage: str, folder: Path) -> None:
    if stage == "detail" and not (folder / "experts" / "dual_expert.json").exists() and not (folder / "began").exists():
        shutil.copytree(shared / "experts", folder / "experts", dirs_exist_ok=True)
    (folder / "began").touch()
    samples = stages.Samples(("a red cat runs",), every=6, steps=2)
    call = {k: v for k, v in CALL.items() if k != "num_inference_steps"}
    settings = Distillation(stage, **TRAINING)
    stages.train(pipe(), shared / "data", folder / "experts", settings, call=call, samples=samples, save_every=1)


def generate(shared: Path, folder: Path) -> None:
    command(
        "generate", PROMPTS[0], "--pipeline", shared / "pipe", "--steps", STEPS, *SIZES, "--out", folder / "clip.gif"
    )


def compare(shared: Path, folder: Path) -> None:
    methods = [part for full in ("[0, 1, 3]", "[0, 2, 4]") for part in ("-m", f"Schedule({full}, num_steps={STEPS})")]
    prompts = [part for prompt in PROMPTS[:2] for part in ("-p", prompt)]
    command("compare", shared / "pipe", *methods, *prompts, "--steps", STEPS, *SIZES, "--out", folder / "report")


def made(shared: Path) -> None:
    """Makes what the jobs share, in a fork: a saved pipeline, training data, a semantic expert."""

    def make(folder: Path) -> None:
        pipe().save_pretrained(folder / "pipe")
        data(folder)
        train(folder, "semantic", folder)
        shutil.rmtree(folder / "experts" / "training")

    pipe()
    run = Run(make, shared)
    if run.ended() != 0:
        raise RuntimeError(f"what the jobs share cannot be made: {run.said()}")


#: Times, and what follows from them; memory is the process's.
_TIMES = ("seconds", "speedup", "memory", "peak", "date", "overhead")


def jobs(shared: Path) -> list[Job]:
    """All jobs; ``shared`` is the "work" of ``made``."""
    vae = ("diffusers:AutoencoderKLWan.encode",)
    seconds = ("seconds",)
    return [
        Job(
            "calibrate forecast",
            functools.partial(FORECAST, PROMPTS, trials=(0.5,)),
            units=6,
            varying=("seconds", "times"),
        ),
        # A prompt's own run, and its edges in batches of one: the longest tails are as long as that run.
        Job("calibrate lemica", functools.partial(LEMICA, PROMPTS[:2]), units=12),
        Job("calibrate mixcache", functools.partial(MIXCACHE, PROMPTS), units=3),
        Job("calibrate teacache", functools.partial(TEACACHE, PROMPTS), units=3),
        Job("compare", functools.partial(compare, shared), units=6, varying=_TIMES, unlike=(".html",)),
        Job("distill prepare", data, units=3, counted=vae),
        Job("distill semantic", functools.partial(train, shared, "semantic"), units=12, varying=seconds),
        Job("distill detail", functools.partial(train, shared, "detail"), units=12, varying=seconds),
        Job("generate", functools.partial(generate, shared), varying=("seconds", "notes")),
    ]


def two_writers() -> list[tuple[str, Any, Any, Any, bool]]:
    """(name, one process, the other, both in one, whether they are ranks)."""
    found = []
    # Without trial runs, which are planned by the samples that a process knows of at that time.
    without = functools.partial(FORECAST, trials=())
    for name, function in (("forecast", without), ("lemica", LEMICA)):
        one, two = (functools.partial(function, prompts) for prompts in (PROMPTS[:2], OTHERS))
        found.append((f"two calibrate {name}", one, two, functools.partial(_both, one, two), False))
        every = functools.partial(function, PROMPTS[:2] + OTHERS)
        found.append((f"torchrun calibrate {name}", every, every, every, True))
    return found


def _both(one: Any, two: Any, folder: Path) -> None:
    one(folder)
    two(folder)
