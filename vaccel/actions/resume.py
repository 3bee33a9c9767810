"""Resume, "b": the blocks behind one whose state is kept (MixCache's block level, arXiv 2508.12691)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from .base import Action, Branches
from .guidance import missing_delta, with_delta


@dataclasses.dataclass(frozen=True)
class Resume(Action):
    """The cached state after block ``block`` goes through the blocks behind it and the head.

    With ``branches="cond"`` that is the conditional branch, and the other is it plus the cached delta; with "both"
    each branch goes on from its own state.
    """

    letter: ClassVar[str] = "b"
    about: ClassVar[str] = "only the blocks behind a cached state computed"
    block: int = 0
    branches: Branches = "cond"

    def missing(self, call: Any) -> str:
        cond = self.branches == "cond"
        if call.branch > 0 and cond:
            return missing_delta(call)
        if not call.states.ready(call, self.block):
            return f"state after block {self.block}"
        return missing_delta(call) if cond and (call.batched or call.run.before.get(call.stage.index, 0) > 1) else ""

    def run(self, call: Any) -> torch.Tensor:
        large, block = call.large, self.block
        several = call.run.before.get(call.stage.index, 0) > 1
        if self.branches == "cond" and (call.batched or call.branch > 0 or several):
            return with_delta(call, block)
        kept, last = call.states, call.slots["large.last"]
        cond_only = self.branches == "cond"
        states = kept.prepared(call, after=block, cond_only=cond_only)
        overwritten = [state.hidden for state in states.values()]
        key = ("resume", block, call.key)
        output = call.executed(key, lambda inputs: large.resuming(inputs, block, states), call.inputs, overwritten)
        kept.wrote(call, states, block)
        call.run.record.large += 2 if call.batched else 1
        return last.write(call, output)
