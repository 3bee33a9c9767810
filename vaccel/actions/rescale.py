"""Rescale, "m": the large model's direction at another length (direction-magnitude decoupling, eq. 3 and 4)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch

from .base import Action, ModelName


@dataclasses.dataclass(frozen=True)
class Rescale(Action):
    """Direction from the cached residual, length from elsewhere: m (x + r) / norm(x + r).

    ``magnitude`` is "small" (the norm of the small model's output), "cached" (none: x + r as it is) or "projection"
    (x + r scaled onto the last large output).  The small model runs in each of them: its output is what the adaptive
    rule watches.  With ``cfg_reuse`` it runs for the conditional branch alone and serves both.
    """

    letter: ClassVar[str] = "m"
    about: ClassVar[str] = "the last computed direction, at another length"
    magnitude: Literal["small", "cached", "projection"] = "small"
    cfg_reuse: bool = True

    def missing(self, call: Any) -> str:
        slot = call.slots.get("large.output")
        if slot is None or not 0 <= slot.step >= slot.first.step:
            return "large.output"
        if self.magnitude == "projection" and not call.slots["large.last"].ready():
            return "large.last"
        needs_small = call.branch > 0 and self.magnitude == "small" and self.cfg_reuse
        return "magnitude of the small model" if needs_small and "magnitude" not in call.run.shared else ""

    def forwards(self, branches: int) -> tuple[tuple[ModelName, int], ...]:
        both = not self.cfg_reuse and self.magnitude == "small"
        return tuple(("small", branch) for branch in range(branches if both else 1))

    def run(self, call: Any) -> torch.Tensor:
        residual = call.slots["large.output"].buffer
        both = not self.cfg_reuse and self.magnitude == "small"
        if call.branch == 0 or both:
            self._run_small(call, both)
        if self.magnitude == "cached":
            return torch.add(call.x, residual)
        if self.magnitude == "projection":
            last, direction = call.slots["large.last"].buffer, torch.add(call.x, residual)
            norm = call.ops.norm(last)
            length = torch.where(norm == 0, norm, call.ops.cosine(last, direction) * norm)  # zero has no cosine
            return call.ops.direction_magnitude(call.x, residual, length)
        magnitude = call.run.shared["magnitude"]
        if len(magnitude) != len(call.x):  # a further call, of the conditional rows alone
            magnitude = magnitude[-len(call.x) :]
        return call.ops.direction_magnitude(call.x, residual, magnitude)

    def _run_small(self, call: Any, both: bool) -> None:
        """The small model's magnitudes, one a row, and its conditional output as a signal."""
        small, norm, run = call.small, call.ops.norm, call.run
        split = call.batched and not both
        inputs = small.rows(call.inputs, slice(call.half, None)) if split else call.inputs
        if call.execute is None:
            output = small.full(inputs)
            magnitude = norm(output)
        else:

            def step(given: Any) -> tuple[torch.Tensor, torch.Tensor]:
                output = small.full(given)
                return output, norm(output)

            output, magnitude = call.execute(("rescale", both, call.key), step, inputs)
        run.record.small += 2 if call.batched and both else 1
        if call.branch == 0:
            run.shared["small"] = output[call.half :] if call.batched and both else output
        run.shared["magnitude"] = magnitude.repeat(2) if split else magnitude
