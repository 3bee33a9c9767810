"""One stage, from a pipeline and its prepared data to a folder of experts: training, sampling, saving."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import torch
from accelerate import Accelerator
from torch import nn

from ..calibrate.samples import Progress, silent
from ..experts.files import DESCRIPTION, SEMANTIC, read_experts, save_experts
from ..experts.weights import unsuitable
from ..integrations.diffusers.call_arguments import check_call
from ..methods import DualExpert
from ..models import Family, find
from ..planning import files
from ..planning.leftovers import sweep
from ..planning.trajectory import Trajectory
from . import plots, sharding
from .outputs import check_counts, check_folder, claimed, write_bytes
from .settings import Distillation
from .shards import Shards
from .trainer import Trainer, accelerator_for


@dataclasses.dataclass(frozen=True)
class Samples:
    """Sampled clips: of ``prompts``, in ``steps`` steps, every ``every`` iterations and at the end.

    Raises ``ValueError`` for fewer than 2 steps, and other numbers or prompts that are none.
    """

    prompts: tuple[str, ...] = ()
    every: int = 250
    steps: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(every=(self.every, 1), steps=(self.steps, 2), seed=(self.seed, 0))
        if not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError(f"prompts are strings, got {self.prompts!r}")


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
    A killed or interrupted training resumes with the same call from the last checkpoint, with the same loss curve.

    Args:
        pipe: the teacher's pipeline, with one transformer, which is moved to the accelerator's device and stays there.
        data: what ``prepare`` wrote with this pipeline.
        settings: the stage; a detail stage finds the semantic expert in ``out``.
        call: arguments of the pipeline's call for the sampled clips.
        accelerator, parts, checkpointing, workers: see ``Trainer``.  Where accelerate's FSDP2 shards the networks, the
            pipeline's transformer stays whole, on the host, and an interrupted training resumes from the last
            checkpoint that ``save_every`` brought.
        save_every: iterations between checkpoints.
        samples: which clips to sample; none by default.
        dtype: of the saved weights; the teacher's by default.
        base: the name of the model that the experts are made from, for their description; the pipeline's by default.
        progress: called with (iterations done, their total, the losses as text).

    A stage that is complete is not trained again.  A checkpoint goes on with the settings, data and base weights that
    it was made with; more iterations are the one change that it takes.

    Raises ``ValueError``, before any forward, for a folder that cannot be written into or that another process trains
    in, a damaged checkpoint, numbers out of range, clips to sample where the networks are sharded, a teacher whose
    weights cannot be copied (offloaded, quantised, with a LoRA, two transformers), data of another model or without the
    branch that guidance needs, settings that do not fit them, a folder whose other experts this stage would replace,
    and a detail stage without its semantic expert; ``OSError`` that names the file where one cannot be written, with
    the last checkpoint whole.
    """
    check_counts(parts=(parts, 1), workers=(workers, 0), save_every=(save_every, 1))
    check_call(pipe, call or {})
    check_folder(Path(out))
    folder = Path(out) / "training" / settings.stage
    check_folder(folder)
    accelerator = accelerator or accelerator_for(find(pipe.transformer, family))
    if samples is not None and samples.prompts and sharding.is_sharded(accelerator):
        raise ValueError(
            "a clip is sampled by one process with whole networks, and these are sharded: train without sample "
            "prompts, and generate with the experts afterwards"
        )
    with claimed(folder) if accelerator.is_main_process else contextlib.nullcontext():
        if accelerator.is_main_process:
            sweep(Path(out), folder)  # what a killed training had not finished writing
            files.settle(Path(out) / DESCRIPTION)
        _train(
            pipe, data, Path(out), settings, dict(call or {}), family, samples, dtype, base, save_every, progress,
            {"accelerator": accelerator, "parts": parts, "checkpointing": checkpointing, "workers": workers},
        )  # fmt: skip
    return Path(out)


def _train(
    pipe: Any, data: str | Path, out: Path, settings: Distillation, call: dict[str, Any], family: Family | str | None,
    samples: Samples | None, dtype: torch.dtype | None, base: str, save_every: int, progress: Progress,
    options: dict[str, Any],
) -> None:  # fmt: skip
    teacher = pipe.transformer
    described, shards = find(teacher, family), Shards(data, model=teacher)
    _check_teacher(pipe)
    _check_data(settings, described, shards)
    trajectory = Trajectory.of(pipe.scheduler, settings.shift)
    before = read_experts(out).training if (out / DESCRIPTION).is_file() else {}
    if lost := set(before) - {settings.stage, *(["semantic"] if settings.stage == "detail" else [])}:
        raise ValueError(f"{out} holds a {', '.join(sorted(lost))} expert, which this would replace: choose another")
    semantic = _semantic(out, settings, trajectory, teacher) if settings.stage == "detail" else None
    base = base or getattr(pipe, "name_or_path", None) or type(pipe).__name__
    dtype = dtype or next(teacher.parameters()).dtype
    with _as_it_was(teacher):
        trainer = Trainer(
            settings, teacher, described, trajectory, shards, out / "training" / settings.stage, semantic=semantic,
            semantic_training=before.get("semantic") if semantic is not None else None, **options,
        )  # fmt: skip
        run = _Run(pipe, trainer, trajectory, out, call, samples, dtype, base, before)
        run.to_the_end(save_every, progress)


@contextlib.contextmanager
def _as_it_was(teacher: nn.Module) -> Iterator[None]:
    """Restores, after the context, which of the teacher's weights are trained and its gradient checkpointing."""
    flags, checkpointed = [(p, p.requires_grad) for p in teacher.parameters()], teacher.is_gradient_checkpointing
    try:
        yield
    finally:
        for p, requires in flags:
            p.requires_grad_(requires)
        if teacher.is_gradient_checkpointing and not checkpointed:
            teacher.disable_gradient_checkpointing()


def _check_teacher(pipe: Any) -> None:
    if getattr(pipe, "transformer_2", None) is not None:
        raise ValueError("pipelines with two transformers are experts already: distillation takes those with one")
    if reason := unsuitable(pipe.transformer):
        raise ValueError(f"this transformer cannot be distilled as it is: {reason}")


def _check_data(settings: Distillation, family: Family, shards: Shards) -> None:
    """Raises ``ValueError`` for data that the stage cannot be trained on, before any forward."""
    first = shards.collate([shards[0]])
    embedded = first.cond.get("guidance") is not None
    if first.uncond is None and not embedded and settings.guidance != 1:
        raise ValueError(
            f"the teacher is to solve with guidance {settings.guidance:g}, and {shards.folder} holds no unconditional "
            "branch: prepare the data with a guidance scale above 1 (and a negative prompt, where the pipeline needs "
            "one), or train with guidance 1"
        )
    axis = family.frame_axis
    if settings.stage == "semantic" and settings.temporal > 0 and axis is not None:
        frames = first.latents.shape[axis]
        if settings.lag >= frames:
            raise ValueError(
                f"the temporal coherence loss looks {settings.lag} latent frames back; these clips have {frames}: "
                "choose a smaller lag, or 0 for its weight"
            )


def _semantic(out: Path, settings: Distillation, trajectory: Trajectory, teacher: nn.Module) -> Path:
    """The weights of the semantic expert that a detail stage needs.  Raises ``ValueError`` where there are none."""
    if not (out / DESCRIPTION).is_file():
        raise ValueError(f"{out} has no semantic expert yet: train --stage semantic there first")
    saved = read_experts(out)
    saved.refuse_other_models(teacher)
    saved.refuse_other_weights(teacher)
    described = saved.training.get("semantic", {})
    if described and described["iteration"] < described["iterations"]:
        raise ValueError(
            f"the semantic expert in {out} is at iteration {described['iteration']} of {described['iterations']}: "
            "finish its stage first"
        )
    if (saved.boundary, saved.trajectory) != (settings.boundary, trajectory):
        raise ValueError(
            f"the semantic expert in {out} ends elsewhere or follows another path: give both stages the same split, "
            "points and shift"
        )
    return out / SEMANTIC


@dataclasses.dataclass
class _Run:
    """Saving, plotting and sampling during a training."""

    pipe: Any
    trainer: Trainer
    trajectory: Trajectory
    out: Path
    call: dict[str, Any]
    samples: Samples | None
    dtype: torch.dtype
    base: str
    before: Mapping[str, Any]  # the training settings in the folder's description

    @property
    def done(self) -> bool:
        """Whether the folder holds experts of this iteration, and what is drawn and sampled of them."""
        trainer = self.trainer
        if self.before.get(trainer.settings.stage, {}).get("iteration") != trainer.iteration:
            return False
        drawn = (trainer.folder / "losses.png").is_file() or not trainer.log.is_file()
        return drawn and (self.samples is None or not self.samples.prompts or self.picture.is_file())

    @property
    def picture(self) -> Path:
        """Where this iteration's samples go."""
        return self.trainer.folder / f"samples-{self.trainer.iteration:06d}.png"

    def due(self) -> bool:
        """Whether clips are sampled at this iteration, which is not the last one."""
        left = self.trainer.settings.steps - self.trainer.iteration
        return self.samples is not None and self.trainer.iteration % self.samples.every == 0 < left

    def to_the_end(self, save_every: int, progress: Progress) -> None:
        trainer, total, start = self.trainer, self.trainer.settings.steps, self.trainer.iteration
        progress(trainer.iteration, total, f"{trainer.settings.stage} expert")
        # Killed between the checkpoint and what follows it.  Every process looks before one of them writes.
        done, unsampled = self.done, start > 0 and self.due() and not self.picture.is_file()
        trainer.accelerator.wait_for_everyone()
        try:
            if unsampled:
                self.save_and_sample()
            for found in trainer.run():
                progress(trainer.iteration, total, "  ".join(f"{k} {v:.4g}" for k, v in found.items()))
                if trainer.iteration % save_every == 0:
                    trainer.save()
                if self.due():
                    self.save_and_sample()
        except KeyboardInterrupt:
            # Else the last checkpoint is kept, as it is where several processes would have to stop at one place.
            if trainer.complete and not trainer.sharded:
                trainer.save()
            raise
        if trainer.iteration > start or not done:
            trainer.save()
            self.save_and_sample()

    def save_and_sample(self) -> None:
        """Saves the current experts, the plot of the losses, and clips sampled with the experts."""
        trainer = self.trainer
        main = trainer.accelerator.is_main_process
        result = sharding.gathered(trainer.networks.result, main)
        if main:
            self.save(result)
            plots.losses(trainer.log, trainer.folder / "losses.png")
            if self.samples is not None and self.samples.prompts:
                self.sample(self.samples.prompts)
        trainer.accelerator.wait_for_everyone()

    def save(self, result: Mapping[str, torch.Tensor]) -> None:
        settings, networks = self.trainer.settings, self.trainer.networks
        result = {k: self._cast(v) for k, v in result.items()}
        detail = settings.stage == "detail"
        before = {k: v for k, v in self.before.items() if k == "semantic"} if detail else {}
        save_experts(
            self.out,
            self.pipe.transformer,
            trajectory=self.trajectory,
            boundary=settings.boundary,
            semantic=True if detail else result,
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
        from ..evaluate.clips import contact_sheet

        clips, device = [], self.trainer.accelerator.device
        others = [
            m for m in self.pipe.components.values() if isinstance(m, nn.Module) and m is not self.pipe.transformer
        ]
        homes = [next((p.device for p in m.parameters()), None) for m in others]
        for module in others:
            module.to(device)
        with accelerate(self.pipe, DualExpert(self.out, steps=self.samples.steps)):
            for prompt in prompts:
                generator = torch.Generator().manual_seed(self.samples.seed)
                result = self.pipe(prompt, generator=generator, **{**self.call, "output_type": "np"})
                frames = result.frames[0] if hasattr(result, "frames") else result.images
                clips.append(frames)
        for module, home in zip(others, homes, strict=True):
            if home is not None:
                module.to(home)
        write_bytes(self.picture, iio.imwrite("<bytes>", contact_sheet(clips), extension=".png"))
