"""Expert, "e": another set of weights for the phase of the path (DCM, arXiv 2506.03123)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from .base import Action


@dataclasses.dataclass(frozen=True)
class Expert(Action):
    """The ``expert``-th expert's weights, conditional branch alone and no guidance: it is distilled.

    The other branch is given the same output, so that any guidance the loop makes of both, u + w (c - u), is it.
    """

    letter: ClassVar[str] = "e"
    about: ClassVar[str] = "computed by an expert's weights"
    expert: int = 0

    def run(self, call: Any) -> torch.Tensor:
        run = call.run
        if call.branch > 0 and "expert" in run.shared:
            return torch.clone(run.shared["expert"])
        large, number = call.large, self.expert
        inputs = large.rows(call.inputs, slice(call.half, None)) if call.batched else call.inputs
        output = call.executed(("expert", number, call.key), lambda given: large.expert(given, number), inputs)
        run.record.large += 1
        if call.batched:
            return torch.cat([output, output])
        run.shared["expert"] = output
        return torch.clone(output)  # which the loop may write into before the other branch is asked
