"""``vaccel distill diagnose``: loss and gradient of a consistency model over the noise levels."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ...distill.settings import Distillation
from ..console import PATIENCE, Bar, clear_errors, say
from ..loading import Loaded
from ..options import Dtype, Pipeline
from .options import Data, Guidance, Shift, Split


def diagnose(
    pipeline: Pipeline = "demo",
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
    dtype: Dtype = "float32",
) -> None:
    """Measure loss and gradient of a single consistency model over the noise levels (the paper's Figure 2).

    Writes {"curves": {"teacher": ..., "trained": ...}}: before training, and what --experts holds.
    """
    from ...distill import diagnosis
    from ...distill.shards import Shards
    from ...models import find
    from ...planning import files
    from ...planning.trajectory import Trajectory

    changes = {k: v for k, v in {"split": split, "shift": shift, "guidance": guidance}.items() if v is not None}
    with clear_errors(f"{out} was not written"):
        files.check(out)
        loaded = Loaded(pipeline, None, None, dtype)
        teacher = loaded.pipe.transformer
        family = find(teacher)
        settings = Distillation.published("single", family.name, batch=batch, **changes)
        trajectory, shards = Trajectory.of(loaded.pipe.scheduler, settings.shift), Shards(data, model=teacher)
        students = {"teacher": None} | ({"trained": _single(experts, teacher)} if experts is not None else {})
        curves: dict[str, Any] = {}
        with Bar(every=PATIENCE) as bar:
            for name, student in students.items():
                curves[name] = diagnosis.diagnose(
                    teacher, family, trajectory, shards, settings, student=student, batches=batches,
                    progress=functools.partial(_advance, bar, name),
                )  # fmt: skip
        files.write_text(out, json.dumps({"curves": curves}, indent=1))
    say(f"{out}: {', '.join(curves)}; {len(curves['teacher']['points'])} points")


def _advance(bar: Bar, name: str, done: int, total: int, what: str) -> None:
    bar.update(done, total, f"{name}: {what}")


def _single(folder: Path, teacher: Any) -> dict[str, Any]:
    """The weights of a --stage single model.  Raises ``ValueError`` for a folder that holds none of this teacher's."""
    from ...experts.files import SEMANTIC, WeightFile, read_experts

    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}: `vaccel distill --stage single` writes one")
    saved = read_experts(folder)
    if "single" not in saved.training:
        raise ValueError(f"{folder} holds no single model, which is what --stage single trains")
    saved.refuse_other_models(teacher)
    saved.refuse_other_weights(teacher)
    weights = WeightFile(folder / SEMANTIC)
    weights.fits(teacher.state_dict())
    return weights.tensors()
