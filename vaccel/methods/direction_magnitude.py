"""DirectionMagnitude: direction from the large model's cached residual, magnitude from the small model."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import torch

from .. import ops
from ..actions import Action, Full, Rescale, Small
from ..cache import LastOutput, OutputResidual, Reading, Store
from ..signals import Signal, SmallOutput
from .base import Method, Observation, Policy, RunInfo, Step, cautious, require, require_threshold


@dataclasses.dataclass(frozen=True)
class DirectionMagnitude(Method):
    """Direction-magnitude decoupling (OpenReview egUfF6cesw, Algorithm 1, eq. 1 to 6).

    Of T steps the first ``ceil(first * T)`` run the large model and those from ``floor(last * T)`` on the small one,
    both with full guidance.  Between, a step is substituted while the accumulated error E is at most ``threshold``:
    v_b = norm(v_small(x|c)) (x + r_b) / norm(x + r_b) for each branch b, r_b = v_large - x of the last large step.
    After a substituted step E grows by 1 - cos(v_small(x|c), v_small at the first substituted step); a large step
    sets it to 0.  E is tested before any forward, so no small forward is wasted (Algorithm 1's order; eq. 5 and 6
    would test after it).

    Args:
        threshold: tau, the tolerated accumulated cosine error (paper: 0.001 to 0.010, default 0.005).  At 0 two
            substituted steps still follow each refresh: the first adds nothing to E, the second is tested before.
        first, last: the interval of the steps that may be substituted, as shares of T (paper: 0.20, 0.95).
        cfg_reuse: the small model's conditional magnitude serves both branches (eq. 4; Table 3 compares).
        magnitude: "small"; "cached" leaves x + r unscaled; "projection" scales x + r by
            <v, x + r> / norm(x + r)^2 with v the last large output (the CFG-Zero*-like row of Table 6).

    A batch decides as one: the sample with the largest E sends every sample to the large model.
    """

    id: ClassVar[str] = "direction_magnitude"
    records: ClassVar = {"error": ("accumulated 1 - cosine of the small model's output", "threshold")}
    presets: ClassVar = {"wan2.1-t2v-14b": {"threshold": 0.005}, "easyanimate-v5.1-12b": {"threshold": 0.005}}

    threshold: float = 0.005
    first: float = 0.20
    last: float = 0.95
    cfg_reuse: bool = True
    magnitude: Literal["small", "cached", "projection"] = "small"

    def __post_init__(self) -> None:
        require_threshold("threshold", self.threshold)
        require(0 <= self.first <= self.last <= 1, f"need 0 <= first <= last <= 1, got {self.first} and {self.last}")
        known = ("small", "cached", "projection")
        require(self.magnitude in known, f"magnitude must be one of {known}, got {self.magnitude!r}")

    @property
    def needs_small(self) -> bool:
        return True

    @property
    def stores(self) -> tuple[Store, ...]:
        return (OutputResidual(), LastOutput()) if self.magnitude == "projection" else (OutputResidual(),)

    @property
    def watches(self) -> tuple[type[Signal], ...]:
        return (SmallOutput,)

    def keeps(self, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "direction_magnitude.reference": sample,
            "direction_magnitude.accumulated": sample.new_empty(len(sample), dtype=torch.float32),
            "direction_magnitude.exceeded": sample.new_empty(1, dtype=torch.int32),
        }

    def start(self, run: RunInfo) -> Policy:
        return _Policy(self, run)


class _Policy(Policy):
    """Algorithm 1."""

    def __init__(self, config: DirectionMagnitude, run: RunInfo):
        self.config, self.buffers = config, run.buffers
        # Guarded against 0.14 * 50 = 7.000000000000001, whose ceiling would be 8.
        self.first = math.ceil(round(config.first * run.num_steps, 9))
        self.last = math.floor(round(config.last * run.num_steps, 9))
        require(
            1 <= self.first < self.last,
            f"DirectionMagnitude: {run.num_steps} steps are too few for the interval [{config.first}, {config.last}]: "
            f"large until step {self.first}, small from step {self.last}, nothing between",
        )
        self.threshold, self.full = config.threshold, Full()
        self.substitute = Rescale(magnitude=config.magnitude, cfg_reuse=config.cfg_reuse)
        self.error: Reading | None = None  # E per sample; None stands for 0
        self.reference: torch.Tensor | None = None

    def decide(self, step: Step) -> Action:
        if step.index < self.first:
            return Full()
        if step.index >= self.last:
            return Small()
        error = [0.0] if self.error is None else self.error.tolist()
        step.metrics |= {"error": error} if len(error) == 1 else cautious(error=error)
        for e in error:
            if not e <= self.threshold:
                return self.full
        return self.substitute

    def reshaped(self) -> None:
        self.error = self.reference = None

    def observe(self, step: Step, seen: Observation) -> None:
        if seen.action.is_full:
            self.error = self.reference = None
        elif isinstance(seen.action, Rescale):
            self.error = self.buffers.read("direction_magnitude.error", self.accumulate(seen.small))

    def accumulate(self, small: torch.Tensor) -> torch.Tensor:
        """E [B] after a substituted step: nothing is waited for here."""
        if self.reference is None:
            batch, device, empty = small.shape[:1], small.device, self.buffers.empty
            self.reference = self.buffers.keep("direction_magnitude.reference", small)
            self.accumulated = empty("direction_magnitude.accumulated", batch, torch.float32, device)
            self.exceeded = empty("direction_magnitude.exceeded", (1,), torch.int32, device)
            self.ops = ops.inner(device, small.dtype)
            return self.accumulated.zero_()
        change = self.ops.cosine(small, self.reference)
        self.ops.accumulate_and_test(self.accumulated, change, 1.0, -1.0, self.threshold, self.exceeded)
        return self.accumulated
