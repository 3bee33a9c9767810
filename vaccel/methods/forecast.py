"""Forecast: skipped velocities from the last computed ones, with weights and a path in closed form from full runs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..actions import Action, Full, Weights
from ..actions import Forecast as Forecasting
from ..cache import Store, VelocityHistory
from ..planning import artifacts, gram
from ..planning.calibration import OBJECTIVE, Calibration, Response, calibration
from ..planning.flow import Flow
from ..signals import ForecastError, Signal
from .base import Method, Observation, Policy, RunInfo, Step, require
from .lemica import PUBLISHED, LeMiCa, _steps
from .schedule import DAMPING, straight

#: Levels of two runs that differ by less are the same run's.
SAME_LEVEL = 2e-3


@dataclasses.dataclass(frozen=True)
class Forecast(Method):
    """Velocities hardly change along a run (``vaccel.flow``), so a few computed ones forecast the others.

    At a skipped step i, of every branch: v_i = sum_k a_k(i; f) v_(f_k) over the last K computed steps f.  With
    ``Forecast.load("forecast.json", budget=17)`` weights and path are a calibration's: least squares over full runs,
    and the path whose stretches do the least harm at the end (``vaccel.gram``).  Without one,
    ``Forecast(full_steps, num_steps=50)``: the straight line in the noise level through the last two, damped by half.
    Neighbours: AB-Cache, TaylorSeer, FoCa and SeaCache forecast hidden states; DPM-Solver-v3, Align Your Steps, GITS
    and S4S learn a solver's steps or coefficients.  Here a fine grid is kept, and what is cached is latent-sized.

    Args:
        full_steps: steps computed in full, step 0 among them.
        num_steps: T of the runs it is for; a run with another number of steps is refused.
        order: K, 1 to 5: from how many velocities it forecasts; 2 with a calibration by frequency bands.
        correct: with a calibration: a computed step tells what the forecasts before it were off by, and what the solver
            is given then makes up for it (``vaccel.gram.outputs``).
        damping: of the straight line, where nothing is calibrated: 0 repeats the last velocity, 1 trusts the line.
        guard: with a calibration: how many times as wrong as calibrated forecasts may be, at the steps that are
            computed anyway, before further ones are computed; None for a fixed path.
        artifact, seal: the calibration's file, and the digest of what it held.
        per: what has weights of its own: "tensor", "channel", "band" or "channel, band".
        max_error: the worst error of a stretch that was planned with, which the guard holds the others to.
        predicted: what the finished latents will be off by (root mean square), as calibrated; 0 where nobody knows.
        fitted: the model and scheduler of the calibration; another model is refused, unless ``allow_mismatch``, another
            solver on the same levels is not: what it is given is worked out for its own response.

    Raises ``ValueError`` for settings out of range.
    """

    id: ClassVar[str] = "forecast"
    presets: ClassVar = LeMiCa.presets
    any_solver: ClassVar = True

    full_steps: tuple[int, ...]
    num_steps: int
    order: int = 2
    damping: float = DAMPING
    correct: bool = True
    guard: float | None = None
    artifact: str = ""
    seal: str = ""
    per: str = "channel"
    max_error: float = 0.0
    predicted: float = 0.0
    fitted: artifacts.Fitted = ()
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "full_steps", tuple(sorted(set(self.full_steps))))
        object.__setattr__(self, "fitted", tuple((name, value) for name, value in self.fitted))
        outside = [i for i in self.full_steps if not 0 <= i < self.num_steps]
        require(not outside, f"full_steps {outside} are outside the run of {self.num_steps} steps")
        require(0 in self.full_steps, "step 0 is computed: there is nothing to forecast it from")
        require(1 <= self.order <= 5, f"order must be 1 to 5, got {self.order}")
        require(math.isfinite(self.damping), f"damping must be finite, got {self.damping!r}")
        require(self.guard is None or self.guard > 0, f"guard must be above 0 or None, got {self.guard!r}")
        require(self.guard is None or bool(self.artifact), "a guard needs a calibration to compare with")
        require(self.per in gram.PER, f"per must be one of {', '.join(map(repr, gram.PER))}, got {self.per!r}")
        require(not self.banded or self.order <= 2, "weights by frequency are of two velocities at most: order=2")

    @classmethod
    def preset(cls, model: str, *, budget: int | None = None, **overrides: Any) -> Forecast:
        """LeMiCa's published steps (arXiv 2511.00090) for a model and a budget, forecast without calibration.

        Raises ``ValueError`` for a model or a budget nothing is published for.
        """
        require(budget is not None or model in cls.presets, f"Forecast.preset({model!r}) needs a budget, such as 17")
        return super().preset(model if budget is None else f"{model}-{budget}", **overrides)

    @classmethod
    def shaped(cls, num_steps: int, budget: int, **overrides: Any) -> Forecast:
        """A path of the shape that published ones have, for any T and budget, without calibration.

        Raises ``ValueError`` for a budget that is not in [2, num_steps].
        """
        return cls(_shaped(num_steps, budget), num_steps, **overrides)

    @classmethod
    def load(
        cls, artifact: str | Path, budget: int | None = None, *, objective: str = OBJECTIVE, order: int = 2,
        per: str = "channel", gain: bool = True, max_gap: int = gram.MAX_GAP, **overrides: Any,
    ) -> Forecast:  # fmt: skip
        """The best path with exactly ``budget`` computed steps, and its weights, from a calibration.

        Args:
            objective: "leximax", the smallest worst error, then the second worst, and so on; "squares", the smallest
                sum of squared errors, what unrelated errors add up to; or "sum".
            gain: whether a stretch counts by what it does at the end, or by what it does where it ends.

        Raises ``ValueError`` for a file that is no whole Forecast artifact, or a budget that it cannot make.
        """
        known = calibration(artifact)
        plans = known.plans(objective, order, per, gain, max_gap)
        if budget not in plans:
            raise ValueError(
                f"Forecast.load needs a budget, how many of {known.gram.num_steps} steps are computed: "
                f"{artifact} can make {min(plans)} to {max(plans)}, got {budget}"
            )
        plan = plans[budget]
        fields = {
            "order": order, "per": per, "artifact": str(artifact), "seal": known.seal, "fitted": known.fitted,
            "max_error": max(plan.errors), "predicted": plan.predicted,
        }  # fmt: skip
        return cls(plan.full_steps, known.gram.num_steps, **{**fields, **overrides})

    @property
    def stores(self) -> tuple[Store, ...]:
        correcting = gram.CORRECTING if self.corrects else 0
        count = max(self.order + (self.guard is not None), correcting)  # the guard compares with those before
        return (VelocityHistory(count, self.banded),)

    @property
    def corrects(self) -> bool:
        """Whether computed steps make up for forecasts: weights by frequency are too many for one pass."""
        return self.correct and bool(self.artifact) and not self.banded

    @property
    def banded(self) -> bool:
        return "band" in self.per

    @property
    def watches(self) -> tuple[type[Signal], ...]:
        return (ForecastError,) if self.guard is not None else ()

    @property
    def adaptive(self) -> bool:
        return False

    def start(self, run: RunInfo) -> Policy:
        require(
            run.num_steps == self.num_steps,
            f"this forecast is for {self.num_steps} steps, the run has {run.num_steps}",
        )
        if not self.artifact:
            return _Policy(self, _Line(run.flow or Flow.even(run.num_steps), self.damping), run)
        known = calibration(self.artifact)
        if known.seal != self.seal:
            raise ValueError(f"{self.artifact} is not what it was when this method was loaded from it: load it again")
        if run.flow is not None:
            off = max(abs(a - b) for a, b in zip(known.gram.levels, run.flow.levels, strict=True))
            if off > SAME_LEVEL and not self.allow_mismatch:
                raise ValueError(
                    f"{self.artifact} was calibrated at other noise levels (they differ by up to {off:.3g}): the "
                    "scheduler, its shift or its number of steps is another. Calibrate for this one (`vaccel calibrate "
                    "forecast`), or pass allow_mismatch=True to the method"
                )
        response = run.flow.response if run.flow is not None and self.corrects else None
        return _Policy(self, _Fit(known, self, response), run)


class _Line:
    """Weights without calibration."""

    def __init__(self, flow: Flow, damping: float):
        self.flow, self.damping = flow, damping

    def along(self, path: tuple[int, ...]) -> None:
        """Every path has the same."""

    def correction(self, step: int) -> None:
        """None: nothing is known of what forecasts are off by."""

    def weights(self, known: tuple[int, ...], step: int) -> Weights:
        return straight(self.flow.levels, known[:2], step, self.damping)


class _Fit:
    """A calibration's weights, and what the solver is given along a path where its response is known."""

    def __init__(self, known: Calibration, method: Forecast, response: Response | None):
        self.known, self.per, self.order, self.response = known, method.per, method.order, response
        self.given: dict[int, Weights] = {}

    def along(self, path: tuple[int, ...]) -> None:
        """The run goes along this path from now on."""
        if self.response is not None:
            self.given = self.known.given(path, self.response, self.order, self.per)

    def correction(self, step: int) -> Weights | None:
        return self.given.get(step)

    def weights(self, known: tuple[int, ...], step: int) -> Weights:
        return self.given[step] if self.given else self.known.weights(known, step, self.per)


class _Policy(Policy):
    def __init__(self, method: Forecast, fit: _Line | _Fit, run: RunInfo):
        self.method, self.fit, self.run = method, fit, run
        self.path = list(method.full_steps)
        self.known: tuple[int, ...] = ()
        self.expected: tuple[Weights, float] | None = None
        self.reading: Any = None
        self.squares: list[float] = []  # of how many times as wrong as calibrated the last forecasts were
        self.extra = 0
        self._plan()

    def _plan(self) -> None:
        """What every step does along the path."""
        self.fit.along(tuple(self.path))
        path, known, self.actions = set(self.path), (), []
        for i in range(self.run.num_steps):
            if i in path:
                known = (i, *known)[: self.method.order]
                self.actions.append(Full(self.fit.correction(i)))
            else:
                self.actions.append(Forecasting(self.fit.weights(known, i)))

    def decide(self, step: Step) -> Action:
        if self.reading is not None:
            self.elements = step.latents[:1].numel()
            self._judge(step)
        action = self.actions[step.index]
        if action.is_full:
            watched = self.method.guard is not None and self.known
            self.expected = self._expectation(step.index) if watched else None
            self.known = (step.index, *self.known)[: self.method.order]
        else:
            self.expected = None
        return action

    def _expectation(self, index: int) -> tuple[Weights, float]:
        known, per = self.fit.known, self.method.per
        return known.weights(self.known, index, per), known.left(self.known, index, per)

    def expects(self, index: int) -> Weights | None:
        return self.expected[0] if self.expected is not None else None

    def reshaped(self) -> None:
        self.reading = self.expected = None

    def observe(self, step: Step, seen: Observation) -> None:
        if seen.action.is_full and step.index not in self.known:
            # Nothing was there to forecast from: another transformer has taken over.
            self.known = (step.index, *self.known)[: self.method.order]
            self._compute(step.index)
        if seen.forecast_error is not None:
            self.reading = self.run.buffers.read("forecast.error", seen.forecast_error)

    def _judge(self, step: Step) -> None:
        """How wrong the last forecast was, against the calibration; what is out of the ordinary is skipped less."""
        wrong = max(self.reading.tolist()) / math.sqrt(self.elements)
        self.reading = None
        self.squares = [*self.squares[-2:], (wrong / max(self.expected[1], 1e-12)) ** 2]
        times = math.sqrt(sum(self.squares) / len(self.squares))
        step.record(forecast_error=times)
        planned = min((f for f in self.path if f >= step.index), default=self.run.num_steps)
        if times <= self.method.guard or planned == step.index:
            return
        bound, end = self.method.guard * self.method.max_error, planned
        while end > step.index and times * self.fit.known.error(self.known, end, self.method.per) > bound:
            end -= 1
        if end != planned:
            self.extra += 1
            self._compute(end)

    def _compute(self, step: int) -> None:
        """Puts a step on the path."""
        self.path = sorted({*self.path, step})
        self._plan()

    def finish(self, step: Step, seen: Observation) -> None:
        if self.method.predicted:
            self.run.note(f"predicted error of the latents: {self.method.predicted:.3g} (root mean square)")
        if self.method.guard is not None:
            verdict = "as calibrated" if not self.extra else f"out of the ordinary at {self.extra} steps, skipped less"
            self.run.note(f"guard: {verdict}")


def _shaped(num_steps: int, budget: int) -> tuple[int, ...]:
    """Steps at the shares of the run where the published schedules of Wan 2.1 have theirs, spread where they meet."""
    require(2 <= budget <= num_steps, f"budget must be 2 to {num_steps}, got {budget}")
    steps, budgets = PUBLISHED["wan2.1-t2v-14b"]
    counts = sorted(budgets)
    shares = np.linspace(0, 1, budget)
    rows = [np.interp(shares, np.linspace(0, 1, n), np.array(_steps(budgets[n])) / (steps - 1)) for n in counts]
    share = budget / num_steps
    known = [n / steps for n in counts]
    mixed = [np.interp(share, known, [row[k] for row in rows]) for k in range(budget)]
    places = np.round(np.array(mixed) * (num_steps - 1)).astype(int)
    for k in range(1, budget):  # no step twice
        places[k] = max(places[k], places[k - 1] + 1)
    for k in range(budget - 1, -1, -1):
        places[k] = min(places[k], num_steps - budget + k)
    return tuple(places.tolist())
