"""The training loop of one stage, by accelerate: one process or many, resumable to the same loss curve."""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..calibrate.samples import hash_of
from ..experts.files import naming
from ..models import Family
from ..models.weights_digest import identity
from ..planning.trajectory import Trajectory
from . import checkpoint, sharding
from .batches import Slots
from .networks import Networks
from .objective import Draws, Objective
from .outputs import append, write_text
from .settings import Distillation
from .shards import Shards

#: What a checkpoint was made with, in words.
_SAID = {"data": "data", "semantic": "semantic", "weights": "base weights (or --dtype, or an adapter)"}


class Trainer:
    """One stage: ``run`` trains to the end, from the last checkpoint in ``folder`` where there is one.

    Args:
        settings: the stage.
        teacher: the transformer that is distilled; frozen.
        trajectory: its path.
        shards: the prepared data.
        folder: for the checkpoint and the log of losses, one JSON line an iteration.
        semantic: weights of the semantic expert, for a detail stage that shares them.
        semantic_training: the settings that the semantic expert was trained with; a checkpoint resumes with the same
            ones only.
        accelerator: accelerate's, for devices, processes and precision; see ``accelerator_for``.  With its FSDP2 the
            networks are sharded over the processes; ``save`` is then for all of them to call at once.
        parts: batches that an iteration's samples are split into (gradient accumulation).
        checkpointing: compute activations again instead of keeping them (gradient checkpointing).
        workers: processes that read ahead.

    Raises ``ValueError`` for a batch that does not divide, a teacher in half precision without mixed precision, fp16,
    another way to share networks than FSDP2, or a checkpoint that is damaged, of other settings, other data, other base
    weights or another semantic expert; ``run`` and ``save`` raise ``OSError`` that names the file which cannot be
    written.
    """

    def __init__(
        self,
        settings: Distillation,
        teacher: nn.Module,
        family: Family,
        trajectory: Trajectory,
        shards: Shards,
        folder: Path,
        *,
        semantic: Path | None = None,
        semantic_training: Any = None,
        accelerator: Accelerator | None = None,
        parts: int = 1,
        checkpointing: bool = False,
        workers: int = 0,
    ):
        self.settings, self.shards, self.folder, self.workers = settings, shards, folder, workers
        self.accelerator = accelerator or accelerator_for(family)
        _check_precision(self.accelerator, next(teacher.parameters()).dtype)
        self.made_with = {
            "data": hash_of(json.dumps(shards.index, sort_keys=True)),
            "semantic": semantic_training,
            "weights": identity({"transformer": teacher}),
        }
        world = self.accelerator.num_processes
        self.slots = Slots(
            len(shards), settings.batch, seed=settings.seed, rank=self.accelerator.process_index, world=world,
            parts=parts,
        )  # fmt: skip
        self.sharded = sharding.is_sharded(self.accelerator)
        self.networks = Networks(settings, family, teacher, semantic, apart=self.sharded)
        if self.sharded:
            teacher = copy.deepcopy(teacher)  # the pipeline's stays whole, on the host
        if checkpointing:
            self.networks.student.enable_gradient_checkpointing()
            if settings.discriminates:  # a gradient goes through the teacher's features
                teacher.enable_gradient_checkpointing()
        if self.sharded:
            mesh = sharding.mesh_of(self.accelerator)
            sharding.shard(teacher, family, mesh, keep_outer=True)
            self.networks.shard(family, mesh)
        else:
            teacher.to(self.accelerator.device)
            self.networks.to(self.accelerator.device)
        self.objective = Objective(settings, trajectory, family, teacher)
        self.parameters = list(self.networks.trained().values())
        self._prepare()
        self.iteration, self.complete = 0, True
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.is_file():
            self._load()
        self._forget_later_lines()

    def _prepare(self) -> None:
        s, heads = self.settings, self.networks.heads
        adamw = torch.optim.AdamW(self.parameters, lr=s.learning_rate, weight_decay=s.weight_decay)
        self.student, self.optimizer = self._prepared(self.networks.student, adamw)
        self.heads = self.heads_optimizer = None
        self.heads_parameters = list(heads.parameters()) if heads is not None else []
        if heads is not None:
            rate = {"lr": s.head_rate, "betas": (0.0, 0.999), "weight_decay": s.weight_decay}
            adamw = torch.optim.AdamW(self.heads_parameters, **rate)
            self.heads, self.heads_optimizer = self._prepared(heads, adamw)

    def _prepared(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """A network and its optimiser in accelerate's hands; where it shards, what it would do but for sharding."""
        if not self.sharded:
            return self.accelerator.prepare(network, optimizer)
        if self.accelerator.mixed_precision != "no":
            network.forward = convert_outputs_to_fp32(network.forward)
        if network is self.networks.heads:  # switched between trained and frozen, which FSDP does not follow
            network = DistributedDataParallel(network.to(self.accelerator.device))
        return network, self.accelerator.prepare_optimizer(optimizer)

    def run(self) -> Iterator[dict[str, float]]:
        """Trains, yielding every iteration's losses (means over all processes) and gradient norm."""
        batches = self.slots.loader(self.shards, self.iteration, self.settings.steps, self.workers)
        with self.log.open("ab", buffering=0) as log:  # a full disk is found at the line that it takes no more
            while self.iteration < self.settings.steps:
                began = time.perf_counter()
                found = self.iterate(batches)
                if self.accelerator.is_main_process:
                    seconds = round(time.perf_counter() - began, 3)
                    line = json.dumps({"iteration": self.iteration, **found, "seconds": seconds}) + "\n"
                    with naming(self.log):
                        append(log, line.encode())
                self.complete = True
                yield found

    def iterate(self, batches: Iterator[Any]) -> dict[str, float]:
        """One update of the student and of the discriminator; ``complete`` is False until it has succeeded."""
        self._warm_up()
        sums: dict[str, torch.Tensor] = {}
        for part in range(self.slots.parts):
            last = part == self.slots.parts - 1
            for name, value in self._part(next(batches), self.slots.of(self.iteration, part), last).items():
                sums[name] = sums.get(name, 0) + value / self.slots.parts
        self.complete = False
        sums["gradient"] = self._update(self.optimizer, self.parameters)
        if self.heads is not None:
            self._update(self.heads_optimizer, self.heads_parameters)
        if self.settings.ema:
            self.networks.update_average(self.settings.ema)
        self.iteration += 1
        names = sorted(sums)
        reduced = self.accelerator.reduce(torch.stack([sums[n].float() for n in names]), "mean").tolist()
        found = dict(zip(names, reduced, strict=True))
        if not all(map(math.isfinite, reduced)):
            raise FloatingPointError(f"iteration {self.iteration}: a loss or gradient is not finite: {found}")
        return found

    def _part(self, batch: Any, slots: list[int], last: bool) -> dict[str, torch.Tensor]:
        """Gradients of one batch, for both sides."""
        batch = batch.to(self.accelerator.device)
        draws = Draws.of(self.settings, batch.latents, slots)
        heads = self.networks.heads
        if heads is not None:
            heads.requires_grad_(False)
        with self._local(self.student, last), self.accelerator.autocast():
            found, features = self.objective.student_losses(self.student, self.networks.target, batch, draws, heads)
            self.accelerator.backward(found["total"] / self.slots.parts)
        if heads is not None:
            heads.requires_grad_(True)
            with self._local(self.heads, last), self.accelerator.autocast():
                found["discriminator"] = self.objective.discriminator_loss(self.heads, features)
                self.accelerator.backward(found["discriminator"] / self.slots.parts)
        return {name: value.detach() for name, value in found.items()}

    def _local(self, network: nn.Module, last: bool) -> Any:
        """Gradients are exchanged between processes after the last part only.

        Not those of sharded networks, which would be whole on every process until then.
        """
        if self.sharded:
            return contextlib.nullcontext() if last or network is self.student else network.no_sync()
        return contextlib.nullcontext() if last else self.accelerator.no_sync(network)

    def _update(self, optimizer: Any, parameters: list[nn.Parameter]) -> torch.Tensor:
        norm = sharding.settled(self.accelerator.clip_grad_norm_(parameters, self.settings.clip))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def _warm_up(self) -> None:
        s = self.settings
        factor = min(1.0, (self.iteration + 1) / s.warmup) if s.warmup else 1.0
        for optimizer, rate in ((self.optimizer, s.learning_rate), (self.heads_optimizer, s.head_rate)):
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = rate * factor

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def _parts(self) -> dict[str, dict[str, torch.Tensor]]:
        """The tensors of everything that is trained, by prefix."""
        networks = self.networks
        parts = {"student.": dict(networks.trained())}
        if networks.average is not None:
            parts["average."] = dict(networks.trained(networks.average))
        if networks.heads is not None:
            parts["heads."] = networks.heads.state_dict()
        return parts

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        found = {"optimizer.": self.optimizer, "heads_optimizer.": self.heads_optimizer}
        return {k: getattr(o, "optimizer", o) for k, o in found.items() if o is not None}

    def save(self) -> None:
        """Writes the checkpoint, by the main process; every process calls it."""
        main = self.accelerator.is_main_process
        if not (main or self.sharded):
            return
        tensors = {prefix + k: v for prefix, part in self._parts().items() for k, v in part.items()}
        for prefix, optimizer in self._optimizers().items():
            tensors |= checkpoint.of_optimizer(optimizer, prefix)
        tensors = sharding.gathered(tensors, main)
        if not main:
            return
        about = {"iteration": self.iteration, "settings": self.settings.to_json(), "made_with": self.made_with}
        checkpoint.write(self.checkpoint, tensors, about)

    def _load(self) -> None:
        tensors, about = checkpoint.read(self.checkpoint, {"iteration": int, "settings": dict})
        made, ours = about["settings"], self.settings.to_json()
        # Longer training of the same thing is the one change that keeps the curve so far.
        if different := [k for k in ours if ours[k] != made.get(k) and "iterations" not in k]:
            k = different[0]
            raise ValueError(
                f"{self.checkpoint} was made with another {', '.join(different)} ({k} {made.get(k)!r} there, "
                f"{ours[k]!r} here); choose another folder or start anew"
            )
        self._refuse_others(about.get("made_with"))
        if about["iteration"] < 0:
            raise checkpoint.damaged(self.checkpoint, f"iteration must be 0 or more, got {about['iteration']}")
        # All of it is checked before anything is changed.
        pairs = [
            pair
            for prefix, part in self._parts().items()
            for pair in checkpoint.filled(self.checkpoint, tensors, prefix, part)
        ]
        for prefix, optimizer in self._optimizers().items():
            checkpoint.load_optimizer(self.checkpoint, optimizer, tensors, prefix)
        with torch.no_grad():
            for value, saved in pairs:
                value.copy_(sharding.like(saved, value))
        self.iteration = about["iteration"]

    def _refuse_others(self, made_with: Any) -> None:
        """Raises ``ValueError`` for a checkpoint of other data, weights or another semantic expert."""
        kept, ours = (made_with if isinstance(made_with, dict) else {}), json.loads(json.dumps(self.made_with))
        # Earlier versions did not say which weights.
        other = [k for k, v in ours.items() if kept.get(k) != v and (k in kept or k != "weights")]
        if other:
            raise ValueError(
                f"{self.checkpoint} was made with other {' and other '.join(_SAID[k] for k in other)}: remove "
                f"{self.folder} to start anew"
            )

    def _forget_later_lines(self) -> None:
        """Removes the log lines of iterations after the checkpoint, which are computed again."""
        if self.log.is_file() and self.accelerator.is_main_process:
            text = self.log.read_text(encoding="utf-8", errors="replace")
            kept = "".join(s + "\n" for s in text.splitlines() if _iteration(s) <= self.iteration)
            if kept != text:
                write_text(self.log, kept)
        self.accelerator.wait_for_everyone()


def accelerator_for(family: Family, precision: str | None = None) -> Accelerator:
    """An ``Accelerator`` for a distillation.

    Processes wait long enough for one of them to save and sample, and do not wait for gradients of weights that a
    family's forward does not use (Qwen-Image's last text branch).
    """
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=1,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=datetime.timedelta(hours=3)),
            DistributedDataParallelKwargs(find_unused_parameters=family.returns == "encoder_hidden"),
        ],
    )


def _check_precision(accelerator: Accelerator, dtype: torch.dtype) -> None:
    plain = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if not sharding.is_sharded(accelerator) and accelerator.distributed_type not in plain:
        raise ValueError(f"{accelerator.distributed_type.value} is not supported: shard the networks by FSDP 2")
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(f"mixed precision is 'no' or 'bf16', not {accelerator.mixed_precision!r}")
    if dtype.itemsize < 4 and accelerator.mixed_precision == "no":
        raise ValueError(f"the teacher is in {dtype}: train with mixed precision (bf16), or load it in float32")


def _iteration(line: str) -> float:
    """The iteration of a line of the log; infinite for a line that was cut short."""
    try:
        found = json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
    return found if isinstance(found, int) else float("inf")
