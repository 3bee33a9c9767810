"""A stage from a pipeline and its prepared data to a folder of experts: train, look at samples, save."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ..calibrate.samples import Progress, silent
from ..expert_files import DESCRIPTION, SEMANTIC, read_experts, save_experts
from ..families import Family, find
from ..methods import DualExpert
from ..trajectory import Trajectory
from . import plots
from .settings import Distillation
from .shards import Shards
from .trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Samples:
    """Clips to look at on the way: ``prompts`` sampled in ``steps`` steps every ``every`` iterations and at the end."""

    prompts: tuple[str, ...] = ()
    every: int = 250
    steps: int = 4
    seed: int = 0


def train(
    pipe: Any,
    data: str | Path,
    out: str | Path,
    settings: Distillation,
    *,
    call: Mapping[str, Any] | None = None,
    family: Family | str | None = None,
    accelerator: Accelerator | None = None,
    parts: int = 1,
    checkpointing: bool = False,
    workers: int = 0,
    save_every: int = 100,
    samples: Samples | None = None,
    dtype: torch.dtype | None = None,
    base: str = "",
    progress: Progress = silent,
) -> Path:
    """Trains one stage of a dual expert into the folder ``out``, which ``vaccel.DualExpert`` then runs with.

    Checkpoints, the log of losses (``log.jsonl``), their plot and the sampled clips go to ``out/training/<stage>``.
    Killed or interrupted, the same call goes on from the last checkpoint, to the same loss curve.

    Args:
        pipe: the teacher's pipeline, with one transformer; it is moved to the accelerator's device and stays there.
        data: what ``prepare`` wrote with this pipeline.
        settings: the stage; a detail stage finds the semantic expert in ``out``.
        call: arguments of the pipeline's call for the sampled clips.
        accelerator, parts, checkpointing, workers: see ``Trainer``.
        save_every: iterations between checkpoints.
        samples: what to sample on the way; nothing if left out.
        dtype: of the saved weights; the teacher's own if left out.
        base: the name that the saved experts give the model they were made from; the pipeline's own if left out.
        progress: told (iterations done, in all, the losses in words).

    Raises ``ValueError`` for a pipeline of two transformers, data of another model, settings that do not fit the
    model, and a detail stage without its semantic expert.
    """
    if getattr(pipe, "transformer_2", None) is not None:
        raise ValueError("pipelines with two transformers are experts already: distillation takes those with one")
    out, teacher = Path(out), pipe.transformer
    described = find(teacher, family)
    shards = Shards(data, model=teacher)
    trajectory = Trajectory.of(pipe.scheduler, settings.shift)
    semantic = _semantic(out, settings, trajectory) if settings.stage == "detail" else None
    trained = [(p, p.requires_grad) for p in teacher.parameters()]
    trainer = Trainer(
        settings, teacher, described, trajectory, shards, out / "training" / settings.stage, semantic=semantic,
        accelerator=accelerator, parts=parts, checkpointing=checkpointing, workers=workers,
    )  # fmt: skip
    base = base or getattr(pipe, "name_or_path", None) or type(pipe).__name__
    dtype = dtype or next(teacher.parameters()).dtype
    run = _Run(pipe, trainer, trajectory, out, dict(call or {}), samples, dtype, base)
    try:
        run.to_the_end(save_every, progress)
    finally:
        for p, requires in trained:
            p.requires_grad_(requires)
    return out


def _semantic(out: Path, settings: Distillation, trajectory: Trajectory) -> Path:
    """Weights of the semantic expert that a detail stage stands on.  Raises ``ValueError`` where it cannot."""
    if not (out / DESCRIPTION).is_file():
        raise ValueError(f"{out} has no semantic expert yet: train --stage semantic there first")
    saved = read_experts(out)
    if (saved.boundary, saved.trajectory) != (settings.boundary, trajectory):
        raise ValueError(
            f"the semantic expert in {out} ends elsewhere or follows another path: give both stages the same split, "
            "points and shift"
        )
    return out / SEMANTIC


@dataclasses.dataclass
class _Run:
    """What a training does besides: saving, plotting, sampling."""

    pipe: Any
    trainer: Trainer
    trajectory: Trajectory
    out: Path
    call: dict[str, Any]
    samples: Samples | None
    dtype: torch.dtype
    base: str

    def to_the_end(self, save_every: int, progress: Progress) -> None:
        trainer, total = self.trainer, self.trainer.settings.steps
        progress(trainer.iteration, total, f"{trainer.settings.stage} expert")
        try:
            for found in trainer.run():
                progress(trainer.iteration, total, "  ".join(f"{k} {v:.4g}" for k, v in found.items()))
                if trainer.iteration % save_every == 0:
                    trainer.save()
                if self.samples is not None and trainer.iteration % self.samples.every == 0 < total - trainer.iteration:
                    self.look()
        except KeyboardInterrupt:
            trainer.save()
            raise
        trainer.save()
        self.look()

    def look(self) -> None:
        """Saves the experts as they are, the plot of the losses, and clips sampled with them."""
        trainer = self.trainer
        if trainer.accelerator.is_main_process:
            self.save()
            plots.losses(trainer.folder / "log.jsonl", trainer.folder / "losses.png")
            if self.samples is not None and self.samples.prompts:
                self.sample(self.samples.prompts)
        trainer.accelerator.wait_for_everyone()

    def save(self) -> None:
        settings, networks = self.trainer.settings, self.trainer.networks
        result = {k: self._cast(v) for k, v in networks.result.items()}
        detail = settings.stage == "detail"
        before = read_experts(self.out).training if detail else {}
        save_experts(
            self.out,
            self.pipe.transformer,
            trajectory=self.trajectory,
            boundary=settings.boundary,
            semantic=load_file(self.out / SEMANTIC) if detail else result,
            detail=result if detail else None,
            adapter=networks.adapter,
            base=self.base,
            guidance={"scale": settings.guidance},
            training={**before, settings.stage: {**settings.to_json(), "iteration": self.trainer.iteration}},
        )

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to("cpu", self.dtype if tensor.is_floating_point() else tensor.dtype)

    def sample(self, prompts: Sequence[str]) -> None:
        from ..api import accelerate
        from ..evaluate.clips import contact_sheet, write_image

        clips = []
        self.pipe.to(self.trainer.accelerator.device)
        with accelerate(self.pipe, DualExpert(self.out, steps=self.samples.steps)):
            for prompt in prompts:
                generator = torch.Generator().manual_seed(self.samples.seed)
                result = self.pipe(prompt, generator=generator, **{**self.call, "output_type": "np"})
                frames = result.frames[0] if hasattr(result, "frames") else result.images
                clips.append(frames)
        sheet = contact_sheet(clips)
        write_image(self.trainer.folder / f"samples-{self.trainer.iteration:06d}.png", sheet)
