"""EasyCache: the output is about as sensitive to its input now as it was a moment ago (arXiv 2507.02860)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch

from ..actions import Action, Full, Residual
from ..cache import OutputResidual, Store
from ..cache.parked import store
from ..signals import Conditional, Signal
from .base import Method, Observation, Policy, RunInfo, Step, cautious, require, require_threshold

Reference = Literal["computed", "previous"]


@dataclasses.dataclass(frozen=True)
class EasyCache(Method):
    """Runtime-adaptive caching without calibration.

    With x the latents that enter a step, v the conditional output before guidance and |a| the mean of absolute values,
    a computed step renews the rate k = |v - v_j| / |x - x_j|.  Every further step adds k |x_i - x_(i-1)| / |v_*| to the
    error foreseen; while that is below ``threshold``, x + (v - x of the last computed step) stands in for the model, of
    each branch by its own.

    Args:
        threshold: tau, the tolerated error.  At 0 every step is computed.
        warmup: steps at the start that are computed; the last step is, too.
        rate_from: the point j of the rate: the last "computed" step, as the authors' release has it, or the "previous"
            step, as the paper's formula, with its stand-in where it was skipped.
        relative_to: which output v_* is, likewise.

    Every sample of a batch has its own error; the first to reach the threshold, or to be no number, has the step
    computed.  Raises ``ValueError`` for settings out of range.
    """

    id: ClassVar[str] = "easycache"
    records: ClassVar = {"error": ("accumulated change foreseen of the output", "threshold")}
    presets: ClassVar = {
        "wan2.1-t2v-14b": {"threshold": 0.05, "warmup": 10},
        "wan2.1-t2v-1.3b": {"threshold": 0.05, "warmup": 10},
        "wan2.2-ti2v-5b": {"threshold": 0.05, "warmup": 7},
        "wan2.2-t2v-a14b": {"threshold": 0.06, "warmup": 7},
        "hunyuanvideo": {"threshold": 0.025, "warmup": 5},
    }

    threshold: float = 0.05
    warmup: int = 10
    rate_from: Reference = "computed"
    relative_to: Reference = "computed"

    def __post_init__(self) -> None:
        require_threshold("threshold", self.threshold)
        whole = isinstance(self.warmup, int) and not isinstance(self.warmup, bool)
        require(whole and self.warmup >= 0, f"warmup must be a whole number >= 0, got {self.warmup!r}")
        for name in ("rate_from", "relative_to"):
            value = getattr(self, name)
            require(value in ("computed", "previous"), f"{name} must be 'computed' or 'previous', got {value!r}")

    @property
    def stores(self) -> tuple[Store, ...]:
        return (OutputResidual(),)

    @property
    def watches(self) -> tuple[type[Signal], ...]:
        return (Conditional,)

    @property
    def _previous(self) -> bool:
        return "previous" in (self.rate_from, self.relative_to)

    def keeps(self, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        names = ["latents", "computed.latents"] + ["previous.latents", "previous.output"] * self._previous
        kept = dict.fromkeys(names, sample) | dict.fromkeys(("change", "error"), _numbers(sample))
        return {f"easycache.{name}": tensor for name, tensor in kept.items()}

    def start(self, run: RunInfo) -> Policy:
        return _Policy(self, run)


class _Policy(Policy):
    """Of one run; measures are per sample, [B]."""

    def __init__(self, config: EasyCache, run: RunInfo):
        self.config, self.run, self.reuse, self.full = config, run, Residual("output"), Full()
        self.threshold, self.previous = config.threshold, config._previous
        self.reshaped()

    def reshaped(self) -> None:
        # The latents that entered the step before, and those of the last computed one, in two buffers; a change of
        # theirs is written over what is needed no more.
        self.entered = self.computed = None
        self.output: torch.Tensor | None = None  # of the last computed step
        self.before: tuple[torch.Tensor, torch.Tensor] | None = None  # (x, v) of the previous step, where asked for
        self.rate = self.error = None  # the rate, relative to the last computed output where changes are

    def decide(self, step: Step) -> Action:
        x, config, action = step.latents, self.config, self.full
        if self.entered is None:
            like, numbers = self.run.buffers.like, _numbers(x)
            self.latents = like("easycache.latents", x), like("easycache.computed.latents", x)
            self.numbers = like("easycache.change", numbers), like("easycache.error", numbers)
        room = self.latents[self.computed is self.latents[0]]
        if self.rate is not None and config.warmup <= step.index < self.run.num_steps - 1:
            rate = self.rate if config.relative_to == "computed" else torch.div(self.rate, _size(self.before[1]))
            change, total = _change(x, self.entered, room, self.numbers[0]), self.numbers[1]
            if self.error is None:
                self.error = torch.mul(rate, change, out=total)
            else:
                torch.addcmul(total, rate, change, out=total)
            error = self.run.buffers.read("easycache.error", self.error).tolist()
            step.metrics |= {"error": error} if len(error) == 1 else cautious(error=error)
            action = self.reuse
            for e in error:
                if not e < self.threshold:  # not a number computes
                    action = self.full
        self.entered = store(room, x)
        return action

    def observe(self, step: Step, seen: Observation) -> None:
        if seen.action.is_full:
            output, before = seen.conditional
            if self.computed is not None:
                x, v = self.before if self.config.rate_from == "previous" else (self.computed, before)
                relative = self.config.relative_to == "computed"
                change = step.ops.relative_l1(v, output) if relative else _change(output, v)
                of_x = _change(self.entered, x, x, self.numbers[0])  # x is needed no more
                self.rate = torch.div(change, of_x, out=change)
            self.computed, self.output, self.error = self.entered, output, None
        elif self.previous:  # what stood in for the model
            output = torch.add(self.entered, torch.sub(self.output, self.computed))
        if self.previous:
            keep = self.run.buffers.keep
            self.before = keep("easycache.previous.latents", self.entered), keep("easycache.previous.output", output)


def _change(
    a: torch.Tensor, b: torch.Tensor, room: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The size of a - b, which is left in ``room``."""
    return _size(torch.sub(a, b, out=room), out)


def _size(a: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of every sample's absolute values, [B], in fp32 or more.  What it is of cancels out in a quotient."""
    return torch.linalg.vector_norm(a, 1, tuple(range(1, a.ndim)), dtype=_wide(a), out=out)


def _numbers(x: torch.Tensor) -> torch.Tensor:
    """One a sample, as ``_size`` gives them; contents undefined."""
    return x.new_empty(x.shape[:1], dtype=_wide(x))


def _wide(a: torch.Tensor) -> torch.dtype:
    return torch.promote_types(a.dtype, torch.float32)
