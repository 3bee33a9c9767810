"""``vaccel distill``: prepare the data, train a stage, look at the noise levels."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..distill.settings import PUBLISHED, Distillation
from . import main as cli


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

STAGES = ("semantic", "detail", "single")


def _published(name: str) -> str:
    """A setting's published value as help shows it, and the families that have another."""

    def shown(value: Any) -> str:
        return "the scheduler's own" if value is None else f"{value:g}"

    values = {family: getattr(Distillation.published("semantic", family), name) for family in PUBLISHED}
    usual = values["hunyuanvideo"]  # also what families without a published value get
    return ", ".join([shown(usual), *(f"{family} {shown(v)}" for family, v in values.items() if v != usual)])


def _of_both(name: str) -> str:
    return f"{_published(name)}; detail stage: {_published('detail_' + name)}"


Data = Annotated[Path, typer.Option(help="Folder that `vaccel distill prepare` wrote.")]
Split = Annotated[int | None, typer.Option(help="First point of the semantic phase.", show_default=_published("split"))]
Shift = Annotated[float | None, typer.Option(help="Shift of the teacher's path.", show_default=_published("shift"))]
Guidance = Annotated[
    float | None,
    typer.Option(help="Guidance scale that the teacher solves with.", show_default=_published("guidance")),
]


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
    from ..distill import demo_clips, video_folder
    from ..distill import prepare as run

    with cli._clear_refusals(f"{out} keeps what was written; the same command goes on"):
        loaded = cli._Loaded(pipeline, None, call, dtype)
        if data == "demo":
            count = count or 1024
            clips = demo_clips(count, seed)
        else:
            clips = video_folder(data, frames=frames, height=height, width=width)
            sizes = {"num_frames": frames, "height": height, "width": width}
            known = inspect.signature(type(loaded.pipe).__call__).parameters
            loaded.call = {k: v for k, v in sizes.items() if k in known} | loaded.call
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
    stage: Annotated[str, typer.Option(help="'semantic', then 'detail'; 'single': one plain consistency model.")] = ...,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Of this stage.", show_default=_of_both("iterations"))
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Samples an iteration, over all processes.", show_default=_published("batch")),
    ] = None,
    parts: Annotated[int, typer.Option(min=1, help="Work an iteration off in so many batches (accumulation).")] = 1,
    rate: Annotated[
        float | None, typer.Option(help="Learning rate of this stage.", show_default=_of_both("rate"))
    ] = None,
    head_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the discriminator.", show_default=_published("head_rate"))
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Iterations over which the rates rise.")] = 0,
    loss: Annotated[str, typer.Option(help="'huber' (the release) or 'l2' (the paper).")] = "huber",
    temporal: Annotated[float, typer.Option(help="Weight of the temporal coherence loss.")] = 1.0,
    lag: Annotated[int, typer.Option(min=1, help="Its lag in latent frames.")] = 3,
    gan: Annotated[float, typer.Option(help="Weight of GAN and feature matching; 0 trains without.")] = 0.1,
    matching: Annotated[
        float | None, typer.Option(help="Weight of feature matching inside it.", show_default=_published("matching"))
    ] = None,
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
    precision: Annotated[
        str | None, typer.Option(help="Mixed precision: no or bf16; what `accelerate launch` says if left out.")
    ] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Gradient checkpointing.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read ahead.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Iterations between checkpoints.")] = 100,
    sample_every: Annotated[int, typer.Option(min=1, help="Iterations between sampled clips.")] = 250,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="To sample. Repeat for more.")] = None,
    call: cli.Call = None,
    save_dtype: Annotated[
        str | None, typer.Option(help="Of the saved weights: float32, bfloat16 or float16.", show_default="as --dtype")
    ] = None,
    dtype: cli.Dtype = "float32",
) -> None:
    """Train one stage of a dual expert. Resumable: run it again after Ctrl-C or a kill.

    Defaults are what the authors published, for families by name where it differs.
    """
    cli._one_of("--stage", stage, STAGES)
    if precision is not None:
        cli._one_of("--precision", precision, ("no", "bf16"))
    if save_dtype is not None:
        cli._one_of("--save-dtype", save_dtype, cli.DTYPES)
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
    with cli._clear_refusals(f"{out} keeps the checkpoint; the same command goes on"):
        # On the host: each process takes to its own device what it needs there.
        loaded = cli._Loaded(pipeline, None, call, dtype, device="cpu")
        _train(loaded, pipeline, data, out, stage, changes, options, precision, prompt, sample_every, save_dtype)


def _train(
    loaded: Any, pipeline: str, data: Path, out: Path, stage: str, changes: dict[str, Any], options: dict[str, Any],
    precision: str | None, prompts: list[str] | None, sample_every: int, save_dtype: str | None,
) -> None:  # fmt: skip
    import torch

    from ..demo import family as demo
    from ..distill.stages import Samples
    from ..distill.stages import train as run
    from ..distill.trainer import accelerator_for
    from ..models import find

    family = find(loaded.pipe.transformer)
    accelerator = accelerator_for(family, precision)
    settings = Distillation.published(stage, family.name, **changes)
    prompts = prompts or (demo.calibration_captions(4) if pipeline == "demo" else [])
    samples = Samples(tuple(prompts), sample_every)
    kept = getattr(torch, save_dtype) if save_dtype is not None else None
    with cli._bar() as bar:
        task = bar.add_task("starting", total=settings.steps, visible=accelerator.is_main_process)
        run(
            loaded.pipe, data, out, settings, call=loaded.call, accelerator=accelerator, samples=samples, dtype=kept,
            base=pipeline,
            progress=lambda done, total, what: bar.update(task, completed=done, total=total, description=what[:90]),
            **options,
        )  # fmt: skip
    if accelerator.is_main_process:
        cli.console.print(f"{out}: {stage} expert; loss curves and samples in {out / 'training' / stage}")


@app.command("diagnose")
def diagnose_command(
    pipeline: cli.Pipeline = "demo",
    data: Data = Path("distill-data"),
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("diagnosis.json"),
    experts: Annotated[
        Path | None, typer.Option(help="Folder of a --stage single model; measured beside the teacher's own weights.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples a batch.")] = 4,
    batches: Annotated[int, typer.Option(min=1, help="Batches a point.")] = 2,
    split: Split = None,
    shift: Shift = None,
    guidance: Guidance = None,
    dtype: cli.Dtype = "float32",
) -> None:
    """Measure loss and gradient of a single consistency model over the noise levels (the paper's Figure 2).

    Writes {"curves": {"teacher": ..., "trained": ...}}: before training, and what --experts holds.
    """
    from ..distill.diagnosis import diagnose
    from ..distill.shards import Shards
    from ..models import find
    from ..planning.trajectory import Trajectory

    given = {k: v for k, v in {"split": split, "shift": shift, "guidance": guidance}.items() if v is not None}
    with cli._clear_refusals("stopped"):
        loaded = cli._Loaded(pipeline, None, None, dtype)
        teacher = loaded.pipe.transformer
        family = find(teacher)
        settings = Distillation.published("single", family.name, batch=batch, **given)
        trajectory, shards = Trajectory.of(loaded.pipe.scheduler, settings.shift), Shards(data, model=teacher)
        students = {"teacher": None} | ({"trained": _single(experts, teacher)} if experts is not None else {})
        curves: dict[str, Any] = {}
        with cli._bar() as bar:
            for name, student in students.items():
                task = bar.add_task(name, total=settings.points)
                curves[name] = diagnose(
                    teacher, family, trajectory, shards, settings, student=student, batches=batches,
                    progress=functools.partial(_advance, bar, task, name),
                )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"curves": curves}, indent=1))
    cli.console.print(f"{out}: {', '.join(curves)}; {len(curves['teacher']['points'])} points")


def _advance(bar: Any, task: Any, name: str, done: int, total: int, what: str) -> None:
    bar.update(task, completed=done, total=total, description=f"{name}: {what}")


def _single(folder: Path, teacher: Any) -> dict[str, Any]:
    """The weights of a --stage single model.  Raises ``ValueError`` for a folder that holds none of this teacher's."""
    from safetensors.torch import load_file

    from ..experts.files import DESCRIPTION, METHOD, SEMANTIC
    from ..models import fingerprints
    from ..planning import artifacts

    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} has no {DESCRIPTION}: no model was saved there whole")
    saved = artifacts.read(folder / DESCRIPTION, METHOD)
    if "single" not in saved["training"]:
        raise ValueError(f"{folder} holds no single model, which is what --stage single trains")
    if saved["model"] != fingerprints.of_model(teacher):
        raise ValueError(f"{folder} holds a model that was trained from another one than this pipeline's")
    return load_file(folder / SEMANTIC)
