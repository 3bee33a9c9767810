"""Whether the bytes that a call will hold are planned exactly, with every store and signal that there is."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

import vaccel
from vaccel import signals
from vaccel.actions import Action, Full
from vaccel.cache import BlockResidual, BlockStates, GuidanceDelta, LastOutput, OutputResidual, Store, VelocityHistory
from vaccel.methods import Method, Policy, RunInfo, Step
from vaccel.methods.base import _METHODS

from .base import Case, generate

STEPS = 6


@dataclasses.dataclass(frozen=True)
class Keeping(Method):
    """Computes every step and keeps whatever can be kept."""

    id: ClassVar[str] = "test_keeping"
    inside: bool = True

    @property
    def stores(self) -> tuple[Store, ...]:
        within = (BlockResidual(), BlockStates(branches="both")) if self.inside else ()
        return (LastOutput(), OutputResidual(), GuidanceDelta(), VelocityHistory(3), *within)

    @property
    def watches(self) -> tuple[type[signals.Signal], ...]:
        return (signals.Velocity, signals.Latents)

    @property
    def adaptive(self) -> bool:
        return False

    def outside(self) -> Method:
        return dataclasses.replace(self, inside=False)

    def start(self, run: RunInfo) -> Policy:
        return _Keeping()


_METHODS.pop(Keeping.id)


class _Keeping(Policy):
    def decide(self, step: Step) -> Action:
        return Full()

    def observe(self, step: Step, seen: Any) -> None:
        assert isinstance(seen.velocity, torch.Tensor)


def check_memory(case: Case) -> list[str]:
    """What is wrong with the plan of a call."""
    pipe = case.build()
    with vaccel.accelerate(pipe, Keeping()) as handle:
        call = {**case.call(), **({case.steps: STEPS} if case.steps is not None else {})}
        torch.manual_seed(3)
        before = torch.random.get_rng_state()
        if case.takes_generator:
            call["generator"] = torch.Generator().manual_seed(1)
        plan = handle.memory_plan(**call)
        wrong = [] if handle.nbytes == 0 else [f"planning left {handle.nbytes} bytes behind"]
        if not torch.equal(torch.random.get_rng_state(), before):
            wrong.append("planning drew random numbers")
        if handle.traces:
            wrong.append("planning left a trace")
        generate(case, pipe, STEPS)
        held = handle.nbytes
    if plan["total"] != held or not held:
        wrong.append(f"planned {plan}, held {held}")
    return wrong
