"""Guidance, "g": one branch computed, the other by the cached difference (MixCache's cfg level, arXiv 2508.12691)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from .base import Action, ModelName


@dataclasses.dataclass(frozen=True)
class Guidance(Action):
    """The conditional branch alone; the unconditional one is it plus the cached delta u - c."""

    letter: ClassVar[str] = "g"
    about: ClassVar[str] = "one branch computed, the other by the cached difference"

    def missing(self, call: Any) -> str:
        return missing_delta(call)

    def forwards(self, branches: int) -> tuple[tuple[ModelName, int], ...]:
        return (("large", 0),)

    def run(self, call: Any) -> torch.Tensor:
        return with_delta(call, None)


def missing_delta(call: Any) -> str:
    """What of the delta a call lacks."""
    if call.branch > 1 or (call.branch and call.first.batched):
        return "delta of a further call"  # skipped layers, a perturbed one: another kind than the unconditional branch
    if call.branch > 0 and not call.slots["large.last"].written_now():
        return "large.last of the conditional branch"
    delta = call.slots["large.delta"]
    # Without a second branch nothing is made of it.
    guided = call.batched or call.branch > 0 or call.run.before.get(call.stage.index, 0) > 1
    return "" if delta.step >= 0 and (not guided or delta.step >= delta.full) else "large.delta"


def with_delta(call: Any, block: int | None) -> torch.Tensor:
    """The conditional branch in full, or from the state after ``block`` on; the other as it plus the cached delta."""
    delta, last, large = call.slots["large.delta"].buffer, call.slots["large.last"], call.large
    if call.branch > 0:
        return last.write(call, last.first.buffer + delta)
    inputs = large.rows(call.inputs, slice(call.half, None)) if call.batched else call.inputs
    kept, after = call.states, -1 if block is None else block
    states = kept.prepared(call, after=after, cond_only=True) if kept is not None else {}
    if call.execute is not None:
        cond = _captured(call, block, inputs, states)
    elif block is None:
        cond = large.recording(inputs, None, states) if states else large.full(inputs)
    else:
        cond = large.resuming(inputs, block, states)
    if kept is not None:
        kept.wrote(call, states, after)
    call.run.record.large += 1
    return last.write(call, torch.cat([cond + delta, cond]) if call.batched else cond)


def _captured(call: Any, block: int | None, inputs: Any, states: dict[int, Any]) -> torch.Tensor:
    large = call.large

    def step(given: Any) -> torch.Tensor:
        return large.recording(given, None, states) if block is None else large.resuming(given, block, states)

    if any(state.hidden is None for state in states.values()):
        return step(inputs)
    overwritten = [state.hidden for state in states.values()]
    return call.execute(("conditional", block, call.key), step, inputs, overwritten)
