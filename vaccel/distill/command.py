"""``vaccel distill``: prepare the data, train a stage, look at the noise levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import cli


class _TrainsUnlessTold(TyperGroup):
    """``vaccel distill PIPELINE ...`` trains; a command's own name comes first where something else is wanted."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["train", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_TrainsUnlessTold,
    no_args_is_help=True,
    help="Distil a dual expert: `prepare` the data, then `vaccel distill PIPELINE --data DATA --stage semantic`, "
    "then the same with --stage detail. Several GPUs: `accelerate launch -m vaccel distill ...`.",
)

Data = Annotated[Path, typer.Option(help="Folder that `vaccel distill prepare` wrote.")]
Split = Annotated[int | None, typer.Option(help="First point of the semantic phase; published for the family.")]
Shift = Annotated[float | None, typer.Option(help="Shift of the teacher's path; published for the family.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale that the teacher solves with.")]


@app.command()
def prepare(
    pipeline: cli.Pipeline = "demo",
    data: Annotated[
        str, typer.Option(help="Folder of clips with metadata.jsonl or a .txt each; 'demo' draws moving shapes.")
    ] = "demo",
    out: Annotated[Path, typer.Option(help="Folder to write, or to go on with.")] = Path("distill-data"),
    count: Annotated[int | None, typer.Option(min=1, help="Clips at the most (demo: 1024).")] = None,
    seed: Annotated[int, typer.Option(help="Of the drawn clips.")] = 0,
    frames: Annotated[int, typer.Option(min=1, help="Frames a clip.")] = 81,
    height: Annotated[int, typer.Option(min=16)] = 480,
    width: Annotated[int, typer.Option(min=16)] = 832,
    negative: Annotated[str | None, typer.Option(help="Negative prompt of the unconditional branch.")] = None,
    call: cli.Call = None,
    dtype: cli.Dtype = "float32",
) -> None:
    """Write clips' latents and prompts' embeddings as safetensors shards. Resumable: run it again after Ctrl-C."""
    from . import demo_clips, video_folder
    from . import prepare as run

    with _clear_refusals(f"{out} keeps what was written; the same command goes on"):
        loaded = cli._Loaded(pipeline, None, call, dtype)
        if data == "demo":
            count = count or 1024
            clips = demo_clips(count, seed)
        else:
            clips = video_folder(data, frames=frames, height=height, width=width)
            loaded.call |= {"num_frames": frames, "height": height, "width": width} if pipeline != "demo" else {}
        with cli._bar() as bar:
            task = bar.add_task("starting", total=count)
            index = run(
                loaded.pipe, clips, out, call=loaded.call, negative_prompt=negative, total=count,
                progress=lambda done, total, what: bar.update(
                    task, completed=done, total=total or None, description=what[:60]
                ),
            )  # fmt: skip
    cli.console.print(f"{out}: {index['count']} samples in {len(index['shards'])} shards")


@app.command()
def train(
    pipeline: cli.Pipeline = "demo",
    data: Data = Path("distill-data"),
    out: Annotated[Path, typer.Option(help="Folder of the experts; both stages go there.")] = Path("experts"),
    stage: Annotated[str, typer.Option(help="'semantic', then 'detail'; 'single': one plain consistency model.")] = "",
    iterations: Annotated[int | None, typer.Option(min=1, help="Of this stage; published for the family.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples an iteration, over all processes.")] = None,
    parts: Annotated[int, typer.Option(min=1, help="Work an iteration off in so many batches (accumulation).")] = 1,
    rate: Annotated[float | None, typer.Option(help="Learning rate of this stage.")] = None,
    head_rate: Annotated[float | None, typer.Option(help="Learning rate of the discriminator.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Iterations over which the rates rise.")] = 0,
    loss: Annotated[str, typer.Option(help="'huber' (the release) or 'l2' (the paper).")] = "huber",
    temporal: Annotated[float, typer.Option(help="Weight of the temporal coherence loss.")] = 1.0,
    lag: Annotated[int, typer.Option(min=1, help="Its lag in latent frames.")] = 3,
    gan: Annotated[float, typer.Option(help="Weight of GAN and feature matching; 0 trains without.")] = 0.1,
    matching: Annotated[float | None, typer.Option(help="Weight of feature matching inside it.")] = None,
    ema: Annotated[float, typer.Option(help="Decay of the target's moving average; 0: the student itself.")] = 0.0,
    sharing: Annotated[str, typer.Option(help="Detail expert: 'lora' on the semantic one, or 'full'.")] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA.")] = 128,
    alpha: Annotated[int, typer.Option(min=1, help="Of the LoRA.")] = 256,
    head_width: Annotated[int, typer.Option(help="Channels of the discriminator's heads.")] = 1024,
    points: Annotated[int, typer.Option(min=2, help="Points of the teacher's trajectory.")] = 50,
    split: Split = None,
    shift: Shift = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(help="Of samples' order, noise and new layers.")] = 0,
    precision: Annotated[str, typer.Option(help="Mixed precision: no, bf16 or fp16.")] = "no",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Gradient checkpointing.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read ahead.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Iterations between checkpoints.")] = 100,
    sample_every: Annotated[int, typer.Option(min=1, help="Iterations between sampled clips.")] = 250,
    prompt: cli.Prompts = None,
    call: cli.Call = None,
    save_dtype: Annotated[str, typer.Option(help="Of the saved weights; the model's own if left out.")] = "",
    dtype: cli.Dtype = "float32",
) -> None:
    """Train one stage of a dual expert. Resumable: run it again after Ctrl-C or a kill."""
    if stage not in ("semantic", "detail", "single"):
        raise typer.BadParameter("'semantic', 'detail' or 'single'", param_hint="--stage")
    which = "detail_" if stage == "detail" else ""
    given = {
        f"{which}iterations": iterations, "batch": batch, f"{which}rate": rate, "head_rate": head_rate, "split": split,
        "shift": shift, "guidance": guidance, "matching": matching,
    }  # fmt: skip
    changes = {k: v for k, v in given.items() if v is not None} | {
        "warmup": warmup, "loss": loss, "temporal": temporal, "lag": lag, "gan": gan, "ema": ema, "sharing": sharing,
        "rank": rank, "alpha": alpha, "head_width": head_width, "points": points, "seed": seed,
    }  # fmt: skip
    options = {"parts": parts, "checkpointing": checkpointing, "workers": workers, "save_every": save_every}
    with _clear_refusals(f"{out} keeps the checkpoint; the same command goes on"):
        loaded = cli._Loaded(pipeline, None, call, dtype)
        _train(loaded, pipeline, data, out, stage, changes, options, precision, prompt, sample_every, save_dtype)
    cli.console.print(f"{out}: {stage} expert; loss curves and samples in {out / 'training' / stage}")


def _train(
    loaded: Any, pipeline: str, data: Path, out: Path, stage: str, changes: dict[str, Any], options: dict[str, Any],
    precision: str, prompts: list[str] | None, sample_every: int, save_dtype: str,
) -> None:  # fmt: skip
    import torch
    from accelerate import Accelerator

    from ..demo import family as demo
    from ..families import find
    from .settings import Distillation
    from .stages import Samples
    from .stages import train as run

    accelerator = Accelerator(mixed_precision=precision)
    settings = Distillation.published(stage, find(loaded.pipe.transformer).name, **changes)
    prompts = prompts or (demo.calibration_captions(4) if pipeline == "demo" else [])
    samples = Samples(tuple(prompts), sample_every)
    kept = getattr(torch, save_dtype) if save_dtype else None
    with cli._bar() as bar:
        task = bar.add_task("starting", total=settings.steps, visible=accelerator.is_main_process)
        run(
            loaded.pipe, data, out, settings, call=loaded.call, accelerator=accelerator, samples=samples, dtype=kept,
            progress=lambda done, total, what: bar.update(task, completed=done, total=total, description=what[:90]),
            **options,
        )  # fmt: skip


@app.command("diagnose")
def diagnose_command(
    pipeline: cli.Pipeline = "demo",
    data: Data = Path("distill-data"),
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("diagnosis.json"),
    experts: Annotated[Path | None, typer.Option(help="Folder of a --stage single model; else the teacher.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples a batch.")] = 4,
    batches: Annotated[int, typer.Option(min=1, help="Batches a point.")] = 2,
    split: Split = None,
    shift: Shift = None,
    guidance: Guidance = None,
    dtype: cli.Dtype = "float32",
) -> None:
    """Measure loss and gradient of a single consistency model over the noise levels (the paper's Figure 2)."""
    from safetensors.torch import load_file

    from ..expert_files import SEMANTIC
    from ..families import find
    from ..trajectory import Trajectory
    from .diagnosis import diagnose
    from .settings import Distillation
    from .shards import Shards

    given = {k: v for k, v in {"split": split, "shift": shift, "guidance": guidance}.items() if v is not None}
    with _clear_refusals("stopped"):
        loaded = cli._Loaded(pipeline, None, None, dtype)
        teacher = loaded.pipe.transformer
        family = find(teacher)
        settings = Distillation.published("single", family.name, batch=batch, **given)
        student = load_file(experts / SEMANTIC) if experts is not None else None
        with cli._bar() as bar:
            task = bar.add_task("starting", total=settings.points)
            found = diagnose(
                teacher, family, Trajectory.of(loaded.pipe.scheduler, settings.shift), Shards(data, model=teacher),
                settings, student=student, batches=batches,
                progress=lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
            )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1))
    cli.console.print(f"{out}: {len(found['points'])} points")


class _clear_refusals:  # noqa: N801 (reads as a context)
    """A clear line instead of a traceback, and what an interruption leaves behind."""

    def __init__(self, interrupted: str):
        self.interrupted = interrupted

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            cli.console.print(f"stopped; {self.interrupted}")
            raise typer.Exit(130) from None
        if isinstance(error, (ValueError, OSError, FloatingPointError)):
            cli._refuse(error)
