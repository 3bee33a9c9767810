"""SRDiffusion: the large model sketches, the small model renders (arXiv 2505.19151)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch

from .. import ops
from ..actions import Action, Full, Residual, Small
from ..cache import BlockResidual, Store
from ..signals import Denoised, Latents, Prediction, Signal
from .base import Method, Observation, Policy, RunInfo, Step, require, require_threshold
from .teacache import TeaCache

_SIGNALS: dict[str, type[Signal]] = {"prediction": Prediction, "denoised": Denoised, "latents": Latents}


@dataclasses.dataclass(frozen=True)
class SRDiffusion(Method):
    """Sketching-rendering cooperation (arXiv 2505.19151, Algorithm 1, eq. 3 to 6).

    The large model runs until the change D_i = tanh(relative L1 of s_i from s_(i-1)) of a signal s settles: when
    0 < D_(i-1) - D_i < ``threshold`` and more than ``fix_steps`` steps are done, the small model takes over from the
    next step on, for good, both branches, on the same scheduler with its history.

    Args:
        threshold: delta (paper: 0.002, 0.01, 0.03 for Wan; 0.008 to 0.03 for CogVideoX).  At 0 it never switches.
        fix_steps: sketching steps that are always made (paper: 5).
        signal: what s is.  Eq. 3 speaks of denoised samples, the text and Figure 3 of predicted noise, Algorithm 1
            passes the latents; "prediction" (the guided model output) is the reading under which the published
            switching steps come out.  "denoised" (the x_0 estimate) and "latents" (as the solver's
            step leaves them, which is what Algorithm 1 tests) are the others.
        rendering: a ``TeaCache`` for the rendering stage alone (Table 3), with the small model's coefficients; its
            state starts at the switch and the first rendering step is computed.

    The paper's fastest configuration (6.22 times on an H20, by its authors) adds attention in 8 bits to both models:
    ``accelerate(pipe, SRDiffusion(0.01, rendering=TeaCache(...)), small=small, attention="sageattention")``.

    In a batch every sample latches its own switch and the last one switches all.
    """

    id: ClassVar[str] = "srdiffusion"
    records: ClassVar = {"change": ("change of the signal from the step before", "")}
    presets: ClassVar = {"wan2.1-t2v-14b": {"threshold": 0.01}, "cogvideox-5b": {"threshold": 0.01}}

    threshold: float = 0.01
    fix_steps: int = 5
    signal: Literal["prediction", "denoised", "latents"] = "prediction"
    rendering: TeaCache | None = None

    def __post_init__(self) -> None:
        require_threshold("threshold", self.threshold)
        require(self.fix_steps >= 0, f"fix_steps must be >= 0, got {self.fix_steps}")
        known = ("prediction", "denoised", "latents")
        require(self.signal in known, f"signal must be one of {known}, got {self.signal!r}")
        require(self.rendering is None or isinstance(self.rendering, TeaCache), "rendering must be a TeaCache or None")

    @property
    def needs_small(self) -> bool:
        return True

    @property
    def stores(self) -> tuple[Store, ...]:
        return (BlockResidual("small"),) if self.rendering else ()

    @property
    def watches(self) -> tuple[type[Signal], ...]:
        return (_SIGNALS[self.signal],)

    def keeps(self, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"srdiffusion.signal": sample}

    def start(self, run: RunInfo) -> Policy:
        require(run.num_steps > 2, f"SRDiffusion: {run.num_steps} steps are too few to see a change settle")
        return _Policy(self, run)


class _Policy(Policy):
    """Algorithm 1 with the switch condition of eq. 4 to 6."""

    def __init__(self, config: SRDiffusion, run: RunInfo):
        self.config, self.run = config, run
        self.previous: torch.Tensor | None = None  # s_(i-1)
        self.change: list[float] | None = None  # D_(i-1) per sample
        self.settled: list[bool] = []
        self.rendering: Policy | None = None

    def decide(self, step: Step) -> Action:
        if not (self.settled and all(self.settled)):
            return Full()
        if self.config.rendering is None:
            return Small()
        if self.rendering is None:
            self.rendering = self.config.rendering.start(self.run, model="small", begin=step.index)
        return self.rendering.decide(step)

    def reshaped(self) -> None:
        self.previous = self.change = None
        self.settled = [all(self.settled)] if self.settled else []
        if self.rendering is not None:
            self.rendering.reshaped()

    def observe(self, step: Step, seen: Observation) -> None:
        if isinstance(seen.action, (Small, Residual)):
            if self.rendering is not None:
                self.rendering.observe(step, seen)
            return
        signal = getattr(seen, self.config.signal)
        if self.previous is not None and self.previous.shape == signal.shape:
            change = torch.tanh(ops.relative_l1(signal, self.previous))
            change = self.run.buffers.read("srdiffusion.change", change).tolist()
            step.record(change=change)
            if self.change is not None and step.index + 1 > self.config.fix_steps:
                drops = [before - now for before, now in zip(self.change, change, strict=True)]
                settled = self.settled if len(self.settled) == len(drops) else [False] * len(drops)
                self.settled = [s or 0 < d < self.config.threshold for s, d in zip(settled, drops, strict=True)]
            self.change = change
        self.previous = self.run.buffers.keep("srdiffusion.signal", signal)
