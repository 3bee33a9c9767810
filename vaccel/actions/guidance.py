"""Guidance, "g": one branch computed, the other by the cached difference (MixCache's cfg level, arXiv 2508.12691)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import torch

from .base import Action


@dataclasses.dataclass(frozen=True)
class Guidance(Action):
    """The conditional branch alone; the unconditional one is it plus the cached delta u - c."""

    letter: ClassVar[str] = "g"

    def missing(self, call: Any) -> str:
        return missing_delta(call)

    def run(self, call: Any) -> torch.Tensor:
        large = call.large
        return with_delta(call, "cond", lambda inputs, states: large.recording(inputs, None, states))


def missing_delta(call: Any) -> str:
    """What of the delta a call lacks."""
    if call.branch > 0 and not call.slots["large.last"].written_now():
        return "large.last of the conditional branch"
    delta = call.slots["large.delta"]
    # Without a second branch nothing is made of it.
    there = delta.ready() if call.guided or call.branch > 0 else delta.step >= 0
    return "" if there else "large.delta"


def with_delta(
    call: Any, name: Hashable, forward: Callable[[Any, dict], torch.Tensor], after: int = -1
) -> torch.Tensor:
    """The conditional branch by ``forward(inputs, states)``, the other as it plus the cached delta."""
    delta, last = call.slots["large.delta"].buffer, call.slots["large.last"]
    if call.branch > 0:
        return last.write(call, last.first.buffer + delta)
    inputs = call.large.rows(call.inputs, slice(call.half, None)) if call.batched else call.inputs
    kept = call.slots.get("large.states")
    states = kept.prepared(call, after=after, cond_only=True) if kept is not None else {}
    overwritten = [state.hidden for state in states.values()]
    cond = call.executed(("conditional", name, call.key), lambda given: forward(given, states), inputs, overwritten)
    if kept is not None:
        kept.wrote(call, states, after)
    call.run.record.large += 1
    return last.write(call, torch.cat([cond + delta, cond]) if call.batched else cond)
