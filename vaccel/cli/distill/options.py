"""The options of ``vaccel distill``; help shows the authors' published values as defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...distill.settings import PUBLISHED, Distillation


def published(name: str) -> str:
    """The published value of a setting, for the help text, and those of the families that have another."""

    def shown(value: Any) -> str:
        return "the scheduler's own" if value is None else f"{value:g}"

    values = {family: getattr(Distillation.published("semantic", family), name) for family in PUBLISHED}
    usual = values["hunyuanvideo"]  # also what families without a published value get
    return ", ".join([shown(usual), *(f"{family} {shown(v)}" for family, v in values.items() if v != usual)])


def published_by_stage(name: str) -> str:
    """The published values of a setting in both stages."""
    return f"{published(name)}; detail stage: {published('detail_' + name)}"


Data = Annotated[Path, typer.Option(help="Folder that `vaccel distill prepare` wrote.")]
Split = Annotated[int | None, typer.Option(help="First point of the semantic phase.", show_default=published("split"))]
Shift = Annotated[float | None, typer.Option(help="Shift of the teacher's path.", show_default=published("shift"))]
Guidance = Annotated[
    float | None,
    typer.Option(help="Guidance scale that the teacher solves with.", show_default=published("guidance")),
]

# Of ``train`` alone, in the order of its help.
ExpertsFolder = Annotated[Path, typer.Option(help="Folder of the experts; both stages go there.")]
Stage = Annotated[str, typer.Option(help="'semantic', then 'detail'; 'single': one plain consistency model.")]
Iterations = Annotated[
    int | None, typer.Option(min=1, help="Iterations of this stage.", show_default=published_by_stage("iterations"))
]
Batch = Annotated[
    int | None,
    typer.Option(min=1, help="Samples an iteration, over all processes.", show_default=published("batch")),
]
Parts = Annotated[int, typer.Option(min=1, help="Batches that an iteration is split into (accumulation).")]
Rate = Annotated[
    float | None, typer.Option(help="Learning rate of this stage.", show_default=published_by_stage("rate"))
]
HeadRate = Annotated[
    float | None, typer.Option(help="Learning rate of the discriminator.", show_default=published("head_rate"))
]
Warmup = Annotated[int, typer.Option(min=0, help="Iterations over which the rates rise.")]
Loss = Annotated[str, typer.Option(help="'huber' (the release) or 'l2' (the paper).")]
Temporal = Annotated[float, typer.Option(help="Weight of the temporal coherence loss.")]
Lag = Annotated[int, typer.Option(min=1, help="Its lag in latent frames.")]
Gan = Annotated[float, typer.Option(help="Weight of GAN and feature matching; 0 trains without.")]
Matching = Annotated[
    float | None, typer.Option(help="Weight of feature matching inside it.", show_default=published("matching"))
]
Ema = Annotated[float, typer.Option(help="Decay of the target's moving average; 0: the student itself.")]
Sharing = Annotated[str, typer.Option(help="Detail expert: 'lora' on the semantic one, or 'full'.")]
Rank = Annotated[int, typer.Option(min=1, help="Rank of the LoRA.")]
Alpha = Annotated[int, typer.Option(min=1, help="Alpha of the LoRA.")]
HeadWidth = Annotated[int, typer.Option(help="Channels of the discriminator's heads.")]
Points = Annotated[int, typer.Option(min=2, help="Points of the teacher's trajectory.")]
TrainingSeed = Annotated[int, typer.Option(help="Seed of samples' order, noise and new layers.")]
Precision = Annotated[
    str | None, typer.Option(help="Mixed precision: no or bf16; that of `accelerate launch` by default.")
]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Gradient checkpointing.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read ahead.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Iterations between checkpoints.")]
SampleEvery = Annotated[int, typer.Option(min=1, help="Iterations between sampled clips.")]
SamplePrompts = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="To sample. Repeat for more.")]
SaveDtype = Annotated[
    str | None,
    typer.Option(help="Dtype of the saved weights: float32, bfloat16 or float16.", show_default="as --dtype"),
]
