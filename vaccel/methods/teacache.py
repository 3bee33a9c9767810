"""TeaCache: reuse while the timestep embedding says that little has changed (arXiv 2411.19108)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..actions import Action, Full, ModelName, Residual, Small
from ..cache import BlockResidual, Store
from ..planning.artifacts import Fitted
from .base import Method, Observation, Policy, RunInfo, Step, cautious, require, require_threshold

_WAN_1_3B = (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774)
_WAN_1_3B_RETENTION = (-52186.2437, 9230.41404, -528.275948, 13.6987616, -0.0499875664)
_WAN_14B = (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404)
_WAN_14B_RETENTION = (-303318.725, 49053.7029, -2655.30556, 58.7365115, -0.315583525)


@dataclasses.dataclass(frozen=True)
class TeaCache(Method):
    """Timestep-embedding aware caching (Liu et al., CVPR 2025), as its authors released it.

    acc += poly(relative L1 of m_i from m_(i-1)), m the modulated timestep input; while acc < ``threshold`` the
    residual of the block stack is reused, else the step is computed and acc starts again at 0.  m is followed on
    every step; the residual is kept per branch.

    Args:
        threshold: the tolerated accumulated distance.  At 0 every step is computed.
        coefficients: of poly, highest power first; from ``TeaCache.preset(model)`` or ``vaccel calibrate teacache``.
        retention: the released "retention" mode for Wan: m is the projected embedding, the first 5 steps are
            computed and the last one is not forced (plain mode: the first and the last are).
        warmup: steps at the start that are computed, where it should be another number.
        fitted: the model of the calibration; another one is refused, unless ``allow_mismatch``; another
            scheduler is no more than noted.

    Rows of a batch (samples and branches) accumulate apart; the first to reach the threshold has the step computed.
    """

    id: ClassVar[str] = "teacache"
    records: ClassVar = {"accumulated": ("accumulated change foreseen of the output", "threshold")}
    embeds: ClassVar[bool] = True
    any_solver: ClassVar[bool] = True
    presets: ClassVar = {
        "wan2.1-t2v-1.3b": {"coefficients": _WAN_1_3B, "threshold": 0.08},
        "wan2.1-t2v-1.3b-retention": {"coefficients": _WAN_1_3B_RETENTION, "threshold": 0.10, "retention": True},
        "wan2.1-t2v-14b": {"coefficients": _WAN_14B, "threshold": 0.2},
        "wan2.1-t2v-14b-retention": {"coefficients": _WAN_14B_RETENTION, "threshold": 0.20, "retention": True},
        "cogvideox-2b": {
            "coefficients": (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434),
            "threshold": 0.1,
        },
        "cogvideox-5b": {
            "coefficients": (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
            "threshold": 0.1,
        },
        "hunyuanvideo": {
            "coefficients": (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896),
            "threshold": 0.15,
        },
        "latte": {
            "coefficients": (-2464.34137, 308.044764, 80.7447667, -4.11385132, 0.111001402),
            "threshold": 0.1,
        },
        "open-sora-1.2": {
            "coefficients": (217.546007, -118.329252, 26.8662585, -0.0459364272, 0.048442624),
            "threshold": 0.1,
        },
    }

    threshold: float = 0.1
    coefficients: tuple[float, ...] = ()
    retention: bool = False
    warmup: int | None = None
    fitted: Fitted = ()
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        require_threshold("threshold", self.threshold)
        require(
            len(self.coefficients) > 0,
            "TeaCache needs coefficients of its polynomial, and every model has its own: TeaCache.preset(model) has "
            "the published ones, `vaccel calibrate teacache` fits them for any other",
        )
        object.__setattr__(self, "coefficients", tuple(float(c) for c in self.coefficients))
        object.__setattr__(self, "fitted", tuple((name, value) for name, value in self.fitted))
        require(self.warmup is None or self.warmup >= 1, f"warmup must be >= 1, got {self.warmup}")

    @property
    def stores(self) -> tuple[Store, ...]:
        return (BlockResidual(),)

    def start(self, run: RunInfo, *, model: ModelName = "large", begin: int = 0) -> Policy:
        """A fresh policy; for another model than the large one, or from a later step on, as SRDiffusion needs."""
        return _Policy(self, run, model, begin)


class _Policy(Policy):
    def __init__(self, config: TeaCache, run: RunInfo, model: ModelName, begin: int):
        self.config, self.model = config, model
        self.threshold, self.coefficients = config.threshold, config.coefficients
        warmup = config.warmup if config.warmup is not None else (5 if config.retention else 1)
        self.first = begin + warmup
        self.last = run.num_steps if config.retention else run.num_steps - 1
        self.computed = Full() if model == "large" else Small()
        self.reused = Residual(model=model)
        self.accumulated: list[float] | None = None

    def decide(self, step: Step) -> Action:
        change = step.modulation_change(self.model, projected=self.config.retention)
        if change is None or not self.first <= step.index < self.last:
            self.accumulated = None
            return self.computed
        threshold, before, accumulated = self.threshold, self.accumulated, []
        below = threshold > 0  # a polynomial can be negative: at threshold 0 nothing may be skipped all the same
        for row, x in enumerate(change):
            value = 0.0
            for coefficient in self.coefficients:
                value = value * x + coefficient
            if before is not None:
                value = before[row] + value
            else:
                value = 0.0 + value
            accumulated.append(value)
            below = below and value < threshold
        step.metrics |= {"accumulated": accumulated} if len(accumulated) == 1 else cautious(accumulated=accumulated)
        self.accumulated = accumulated if below else None
        return self.reused if below else self.computed

    def reshaped(self) -> None:
        self.accumulated = None

    def observe(self, step: Step, seen: Observation) -> None:
        if isinstance(seen.action, (Full, Small)):  # also where the engine computed what could not be reused
            self.accumulated = None
