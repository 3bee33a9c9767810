"""Recording: a run in full that returns its velocities, for calibrations."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import torch

from ..actions import Action, Full
from ..cache import Store, VelocityHistory
from ..planning.channels import Channels
from ..planning.flow import Flow
from ..signals import Signal, Velocity
from .base import Method, Observation, Policy, RunInfo, Step, require


class Recorded(NamedTuple):
    """A run's guided velocities [T, B, ...], fp32, its flow, and where the velocities' channels lie."""

    velocities: torch.Tensor
    flow: Flow
    channels: Channels


@dataclasses.dataclass(frozen=True)
class Recording(Method):
    """Computes every step and delivers the guided velocities of all steps, ``Recorded``, with the trace.

    Where the latents hold something that is not denoised (an image to be edited, a given first frame), velocities are
    zero.  The run itself is unchanged.  It needs memory for T further tensors of the latents' size, in fp32.

    Args:
        keep: where the velocities are kept: on the "device" of the latents, or in "host" memory.

    Raises ``ValueError`` for another ``keep``.
    """

    id: ClassVar[str] = "recording"

    keep: Literal["device", "host"] = "device"

    def __post_init__(self) -> None:
        require(self.keep in ("device", "host"), f"keep must be 'device' or 'host', got {self.keep!r}")

    @property
    def stores(self) -> tuple[Store, ...]:
        return (VelocityHistory(1),)

    @property
    def watches(self) -> tuple[type[Signal], ...]:
        return (Velocity,)

    @property
    def adaptive(self) -> bool:
        return False

    def start(self, run: RunInfo) -> Policy:
        return _Policy(self, run)


class _Policy(Policy):
    def __init__(self, method: Recording, run: RunInfo):
        self.method, self.run = method, run
        self.velocities: torch.Tensor | None = None
        self.incomplete = False
        self.entered: torch.Tensor | None = None  # the latents of the first step

    def decide(self, step: Step) -> Action:
        self.channels = step.channels
        if step.index == 0:
            self.entered = step.latents.clone()
        return Full()

    def observe(self, step: Step, seen: Observation) -> None:
        if self.velocities is not None and seen.velocity.shape != self.velocities.shape[1:]:
            self.incomplete = True  # the velocities no longer fit into one tensor
        if self.incomplete:
            return
        if self.velocities is None:
            device = seen.velocity.device if self.method.keep == "device" else "cpu"
            shape = (self.run.num_steps, *seen.velocity.shape)
            self.velocities = torch.empty(
                shape, dtype=torch.float32, device=device
            )  # not a buffer: the receiver keeps it
        self.velocities[step.index].copy_(seen.velocity)

    def finish(self, step: Step, seen: Observation) -> None:
        self.observe(step, seen)
        if self.incomplete:
            self.run.note("this run is not used for calibration: its latents changed their shape")
            return
        still = self.channels.still(self.entered, step.latents) if self.run.num_steps > 1 else None
        if still is not None:  # what is given with the latents, and whose prediction nobody takes
            self.velocities.masked_fill_(still.to(self.velocities.device), 0.0)
        self.run.deliver(Recorded(self.velocities, self.run.flow or Flow.even(self.run.num_steps), self.channels))
