"""``vaccel distill train``: one stage of a dual expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...distill.settings import Distillation
from ..console import PATIENCE, Bar, clear_errors, say
from ..loading import Loaded
from ..options import DTYPES, Call, Dtype, Pipeline, one_of
from .options import (
    Alpha,
    Batch,
    Checkpointing,
    Data,
    Ema,
    ExpertsFolder,
    Gan,
    Guidance,
    HeadRate,
    HeadWidth,
    Iterations,
    Lag,
    Loss,
    Matching,
    Parts,
    Points,
    Precision,
    Rank,
    Rate,
    SampleEvery,
    SamplePrompts,
    SaveDtype,
    SaveEvery,
    Sharing,
    Shift,
    Split,
    Stage,
    Temporal,
    TrainingSeed,
    Warmup,
    Workers,
)

STAGES = ("semantic", "detail", "single")


def train(
    pipeline: Pipeline = "demo",
    data: Data = Path("distill-data"),
    out: ExpertsFolder = Path("experts"),
    stage: Stage = ...,
    iterations: Iterations = None,
    batch: Batch = None,
    parts: Parts = 1,
    rate: Rate = None,
    head_rate: HeadRate = None,
    warmup: Warmup = 0,
    loss: Loss = "huber",
    temporal: Temporal = 1.0,
    lag: Lag = 3,
    gan: Gan = 0.1,
    matching: Matching = None,
    ema: Ema = 0.0,
    sharing: Sharing = "lora",
    rank: Rank = 128,
    alpha: Alpha = 256,
    head_width: HeadWidth = 1024,
    points: Points = 50,
    split: Split = None,
    shift: Shift = None,
    guidance: Guidance = None,
    seed: TrainingSeed = 0,
    precision: Precision = None,
    checkpointing: Checkpointing = False,
    workers: Workers = 0,
    save_every: SaveEvery = 100,
    sample_every: SampleEvery = 250,
    prompt: SamplePrompts = None,
    call: Call = None,
    save_dtype: SaveDtype = None,
    dtype: Dtype = "float32",
) -> None:
    """Train one stage of a dual expert. Resumable: run it again after Ctrl-C or a kill.

    Defaults are the authors' published values, by family where they differ.
    """
    one_of("--stage", stage, STAGES)
    if precision is not None:
        one_of("--precision", precision, ("no", "bf16"))
    if save_dtype is not None:
        one_of("--save-dtype", save_dtype, DTYPES)
    which = "detail_" if stage == "detail" else ""
    with_published_defaults = {
        f"{which}iterations": iterations, "batch": batch, f"{which}rate": rate, "head_rate": head_rate, "split": split,
        "shift": shift, "guidance": guidance, "matching": matching,
    }  # fmt: skip
    changes = {k: v for k, v in with_published_defaults.items() if v is not None} | {
        "warmup": warmup, "loss": loss, "temporal": temporal, "lag": lag, "gan": gan, "ema": ema, "sharing": sharing,
        "rank": rank, "alpha": alpha, "head_width": head_width, "points": points, "seed": seed,
    }  # fmt: skip
    options = {"parts": parts, "checkpointing": checkpointing, "workers": workers, "save_every": save_every}
    with clear_errors(f"{out} keeps the checkpoint; the same command resumes it"):
        from ...distill.outputs import check_folder

        check_folder(out)
        # On the host: each process moves what it needs to its own device.
        loaded = Loaded(pipeline, None, call, dtype, device="cpu")
        _train(loaded, pipeline, data, out, stage, changes, options, precision, prompt, sample_every, save_dtype)


def _train(
    loaded: Any, pipeline: str, data: Path, out: Path, stage: str, changes: dict[str, Any], options: dict[str, Any],
    precision: str | None, prompts: list[str] | None, sample_every: int, save_dtype: str | None,
) -> None:  # fmt: skip
    import torch

    from ...demo import family as demo
    from ...distill.sharding import is_sharded
    from ...distill.stages import Samples
    from ...distill.stages import train as run
    from ...distill.trainer import accelerator_for
    from ...models import find

    family = find(loaded.pipe.transformer)
    accelerator = accelerator_for(family, precision)
    settings = Distillation.published(stage, family.name, **changes)
    shows = pipeline == "demo" and not is_sharded(accelerator)
    prompts = prompts or (demo.calibration_captions(4) if shows else [])
    samples = Samples(tuple(prompts), sample_every)
    kept = getattr(torch, save_dtype) if save_dtype is not None else None
    with Bar(every=PATIENCE, visible=accelerator.is_main_process) as bar:
        run(
            loaded.pipe, data, out, settings, call=loaded.call, accelerator=accelerator, samples=samples, dtype=kept,
            base=pipeline, progress=bar.update,
            **options,
        )  # fmt: skip
    if accelerator.is_main_process:
        say(f"{out}: {stage} expert; loss curves and samples in {out / 'training' / stage}")
