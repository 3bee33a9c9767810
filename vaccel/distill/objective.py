"""One stage's objective on a batch: the consistency loss and what each stage adds (arXiv 2506.03123, eq. 6 to 10)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..models import Family
from ..planning.trajectory import Level, Trajectory
from . import losses
from .discriminator import Discriminator, tapped
from .settings import Distillation
from .shards import Batch


@dataclasses.dataclass
class Draws:
    """The random draws of an iteration, one row a sample.

    The point of the trajectory that it starts from and its noise; with a discriminator also the point and the noise
    that both phase ends are noised with for it, else None.
    """

    index: torch.Tensor
    noise: torch.Tensor
    gan_point: torch.Tensor | None = None
    gan_noise: torch.Tensor | None = None

    @classmethod
    def of(cls, settings: Distillation, latents: torch.Tensor, slots: Sequence[int]) -> Draws:
        """The draws of row b depend on ``slots[b]`` alone: not on the number of processes or on interruptions."""
        first, last = settings.starts
        rows = []
        for slot in slots:
            g = torch.Generator().manual_seed((settings.seed * 2_000_003 + slot) * 2 + 1)
            row = [torch.randint(first, last + 1, (), generator=g), torch.randn(latents.shape[1:], generator=g)]
            if settings.discriminates:
                row += [torch.randint(0, settings.split, (), generator=g), torch.randn(latents.shape[1:], generator=g)]
            rows.append(row)
        drawn = [torch.stack(v) for v in zip(*rows, strict=True)]
        return cls(*(v.to(latents) if v.is_floating_point() else v for v in drawn))


class Objective:
    """The losses of one stage.  The teacher stays frozen; the target network never gets a gradient."""

    def __init__(self, settings: Distillation, trajectory: Trajectory, family: Family, teacher: nn.Module):
        self.settings, self.trajectory, self.family, self.teacher = settings, trajectory, family, teacher

    def level(self, points: torch.Tensor) -> Level:
        """Noise levels of trajectory points; -1 is the clean end."""
        return self.trajectory.level((points.double() + 1) / self.settings.points)

    def predict(self, model: nn.Module, x: torch.Tensor, at: Level, arguments: dict[str, Any]) -> torch.Tensor:
        """The model's prediction for x [B, ...]."""
        timestep = self.family.timestep(at.timestep.to(x.device, torch.float32))
        inputs = {**arguments, "hidden_states": x, "timestep": timestep, "return_dict": False}
        output = model(**inputs)[0]
        return self.family.prediction(self.teacher, inputs, output).to(x.dtype)  # a wrapped model has no config

    @torch.no_grad()
    def teacher_step(self, x: torch.Tensor, at: Level, to: Level, batch: Batch) -> torch.Tensor:
        """One solver step by the teacher's guided prediction (eq. 5)."""
        prediction = self.predict(self.teacher, x, at, batch.cond)
        if batch.uncond is not None:
            uncond = self.predict(self.teacher, x, at, batch.uncond)
            prediction = self.family.guided(prediction, uncond, self.settings.guidance)
        return self.trajectory.solve(x, prediction, at, to)

    def pair(
        self, student: nn.Module, target: nn.Module, batch: Batch, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The phase ends [B, ...] predicted by the student from a point, and by the target from the teacher's next one.

        The second is the x^ of eq. 9: one step of the teacher, then the target network's jump, without gradient.  The
        detail stage's discriminator takes it as real.

        A sample whose next point is the phase end already has its target there: the jump leaves it unchanged.
        """
        here, following = self.level(draws.index), self.level(draws.index - 1)
        end = self.level(torch.full_like(draws.index, self.settings.end))
        x = self.trajectory.noised(batch.latents, draws.noise, here)
        after = self.teacher_step(x, here, following, batch)
        with torch.no_grad():
            theirs = self.trajectory.solve(after, self.predict(target, after, following, batch.cond), following, end)
        mine = self.trajectory.solve(x, self.predict(student, x, here, batch.cond), here, end)
        return mine, theirs

    def consistency(self, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        if self.settings.loss == "huber":
            return losses.pseudo_huber(mine, theirs, self.settings.huber_c)
        return losses.squared(mine, theirs)

    def student_losses(
        self,
        student: nn.Module,
        target: nn.Module,
        batch: Batch,
        draws: Draws,
        discriminator: Discriminator | None = None,
    ) -> tuple[dict[str, torch.Tensor], tuple[list[torch.Tensor], list[torch.Tensor]] | None]:
        """The stage's losses, of which "total" is minimised, and the features (fake, real) for the discriminator."""
        settings = self.settings
        mine, theirs = self.pair(student, target, batch, draws)
        found = {"consistency": self.consistency(mine, theirs)}
        total, features = found["consistency"], None
        if settings.stage == "semantic" and settings.temporal > 0 and self.family.frame_axis is not None:
            found["temporal"] = losses.temporal_coherence(mine, theirs, settings.lag, self.family.frame_axis)
            total = total + settings.temporal * found["temporal"]
        if discriminator is not None:
            features = self.features(mine, theirs, batch, draws, discriminator.numbers)
            fake, real = features
            found["adversarial"] = losses.generator_hinge(discriminator(fake))
            found["matching"] = losses.feature_matching(fake, real)
            added = settings.adversarial * found["adversarial"] + settings.matching * found["matching"]
            total = total + settings.gan * added
        return {**found, "total": total}, features

    def features(
        self, mine: torch.Tensor, theirs: torch.Tensor, batch: Batch, draws: Draws, numbers: tuple[int, ...]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The teacher's features [B, tokens, C] of both clean ends, noised alike, after the blocks ``numbers``."""
        at = self.level(draws.gan_point)
        with tapped(self.teacher, self.family, numbers) as take:
            self.predict(self.teacher, self.trajectory.noised(mine, draws.gan_noise, at), at, batch.cond)
            fake = take()
            with torch.no_grad():
                self.predict(self.teacher, self.trajectory.noised(theirs, draws.gan_noise, at), at, batch.cond)
            return fake, take()

    @staticmethod
    def discriminator_loss(
        discriminator: nn.Module, features: tuple[list[torch.Tensor], list[torch.Tensor]]
    ) -> torch.Tensor:
        """The loss of the heads, on detached features."""
        fake, real = ([f.detach() for f in side] for side in features)
        return losses.discriminator_hinge(discriminator(real), discriminator(fake))
