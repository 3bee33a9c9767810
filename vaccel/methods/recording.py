"""Recording: a run in full that leaves its velocities behind, for calibrations."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import torch

from ..actions import Action, Full
from ..planning.flow import Flow
from .base import Method, Observation, Policy, RunInfo, Step, require


class Recorded(NamedTuple):
    """A run's guided velocities [T, B, ...], fp32, and the flow that they are of."""

    velocities: torch.Tensor
    flow: Flow


@dataclasses.dataclass(frozen=True)
class Recording(Method):
    """Computes every step and delivers the guided velocities of all, ``Recorded``, with the trace.

    Nothing about the run changes.  What it needs beyond that is one trajectory of latents.

    Args:
        keep: where they are kept: on the "device" of the latents, or in "host" memory.
    """

    id: ClassVar[str] = "recording"

    keep: Literal["device", "host"] = "device"

    def __post_init__(self) -> None:
        require(self.keep in ("device", "host"), f"keep must be 'device' or 'host', got {self.keep!r}")

    @property
    def stores(self) -> frozenset[str]:
        return frozenset({"large.past"})

    @property
    def remembers(self) -> int:
        return 1

    @property
    def watches(self) -> frozenset[str]:
        return frozenset({"velocity"})

    @property
    def adaptive(self) -> bool:
        return False

    def start(self, run: RunInfo) -> Policy:
        return _Policy(self, run)


class _Policy(Policy):
    def __init__(self, method: Recording, run: RunInfo):
        self.method, self.run = method, run
        self.velocities: torch.Tensor | None = None

    def decide(self, step: Step) -> Action:
        return Full()

    def observe(self, step: Step, seen: Observation) -> None:
        if self.velocities is None:
            device = seen.velocity.device if self.method.keep == "device" else "cpu"
            shape = (self.run.num_steps, *seen.velocity.shape)
            self.velocities = torch.empty(shape, dtype=torch.float32, device=device)  # its receiver's, not a buffer
        self.velocities[step.index].copy_(seen.velocity)

    def finish(self, step: Step, seen: Observation) -> None:
        self.observe(step, seen)
        self.run.deliver(Recorded(self.velocities, self.run.flow or Flow.even(self.run.num_steps)))
