"""Forecast: skipped velocities are combinations of the last computed ones, with calibrated weights and path."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .. import deprecated
from ..actions import Action, Full, Weights
from ..actions import Forecast as Forecasting
from ..actions.forecast import with_own
from ..cache import Store, VelocityHistory
from ..planning import artifacts, gram
from ..planning.calibration import OBJECTIVE, RULE, Calibration, calibration
from ..planning.flow import Flow
from ..planning.forecast_weights import CalibratedWeights, ExtrapolatedWeights
from ..planning.paths import MAX_GAP
from ..planning.prior import shipped
from ..planning.schema import step_count, step_list
from ..planning.straightness import Straightness
from ..signals import ForecastError, Signal, VelocityProducts
from .base import Method, Observation, Policy, RunInfo, Step, require
from .lemica import PUBLISHED, LeMiCa, parsed_steps
from .schedule import DAMPING


@dataclasses.dataclass(frozen=True)
class Forecast(Method):
    """Velocities hardly change along a run (``vaccel.planning.flow``), so a few computed ones forecast the others.

    At a skipped step i, for every branch: v_i = sum_k a_k(i; f) v_(f_k) over the last K computed steps f.  With
    ``Forecast.load("forecast.json", budget=17)`` weights and path come from a calibration: the weights by least squares
    over full runs, the path as the one with the smallest errors at the end (``vaccel.planning.paths``).  Without one,
    ``Forecast(full_steps, num_steps=50)`` extrapolates linearly in the noise level from the last two, damped by half.
    Related work: AB-Cache, TaylorSeer, FoCa and SeaCache forecast hidden states; DPM-Solver-v3, Align Your Steps, GITS
    and S4S learn a solver's steps or coefficients.  Forecast keeps the fine time grid and caches latent-sized tensors.

    Args:
        full_steps: steps computed in full, step 0 among them.
        num_steps: T of the runs it is for; a run with another number of steps is refused.
        order: K, 1 to 5: the number of velocities that a forecast combines; at most 2 with weights by frequency band.
        correct: with a calibration: at a computed step the velocity that the solver receives makes up for the errors of
            the forecasts before it (``vaccel.planning.gram.solver_weights``).
        damping: of the linear extrapolation, without calibration: 0 repeats the last velocity, 1 follows the line.
        guard: with a calibration: the largest tolerated ratio of the forecast error, measured at computed steps, to the
            calibrated one; beyond it further steps are computed.  None for a fixed path.
        artifact, seal: the calibration's file, and its digest.
        per: what has its own weights: "tensor", "channel", "band" or "channel, band".
        max_error: the largest error of any skipped stretch of the path, as planned; the guard's bound.
        predicted: the expected error of the finished latents (root mean square), as calibrated; 0 where it is unknown.
        fitted: the model and scheduler of the calibration; another model is refused, unless ``allow_mismatch``.
            Another scheduler, shift or number of steps is accepted: the calibration is read at the run's own noise
            levels (``vaccel.planning.levels``), and path and weights are worked out for them and its solver's response.
        budget: how many steps are computed of a run at other levels than the calibration's; all, where it has fewer.
            None where ``full_steps`` were given: then other levels are refused.
        objective, error_growth, max_gap: how the path of such a run is planned, as in ``load``.
        adapt: whether weights follow what the run's own computed steps show (``vaccel.planning.straightness``).

    Raises ``ValueError`` for settings out of range.
    """

    id: ClassVar[str] = "forecast"
    presets: ClassVar = LeMiCa.presets
    any_solver: ClassVar = True
    records: ClassVar = {
        "forecast_error": ("error of forecasts, as a multiple of the calibrated one", "guard"),
        "straight": ("share of straight lines in the weights", ""),
    }

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
    budget: int | None = None
    objective: str = OBJECTIVE
    error_growth: bool = True
    max_gap: int = MAX_GAP
    adapt: bool = False

    def __post_init__(self) -> None:
        step_count(self.num_steps)
        object.__setattr__(self, "full_steps", step_list(self.full_steps))
        object.__setattr__(self, "fitted", tuple((name, value) for name, value in self.fitted))
        outside = [i for i in self.full_steps if not 0 <= i < self.num_steps]
        require(not outside, f"full_steps {outside} are outside the run of {self.num_steps} steps")
        require(0 in self.full_steps, "step 0 must be in full_steps: there is nothing to forecast it from")
        require(1 <= self.order <= gram.MOST_ORDER, f"order must be 1 to 5, got {self.order}")
        require(math.isfinite(self.damping), f"damping must be finite, got {self.damping!r}")
        require(self.guard is None or self.guard > 0, f"guard must be above 0 or None, got {self.guard!r}")
        require(self.guard is None or bool(self.artifact), "a guard needs a calibration to compare with")
        require(self.per in gram.PER, f"per must be one of {', '.join(map(repr, gram.PER))}, got {self.per!r}")
        require(not self.banded or self.order <= 2, "weights by frequency band combine at most two velocities: order=2")

    @classmethod
    def preset(cls, model: str, *, budget: int | None = None, **overrides: Any) -> Forecast:
        """LeMiCa's published steps (arXiv 2511.00090) for a model and a budget, without calibration.

        Raises ``ValueError`` for a model or a budget that nothing is published for.
        """
        require(budget is not None or model in cls.presets, f"Forecast.preset({model!r}) needs a budget, such as 17")
        return super().preset(model if budget is None else f"{model}-{budget}", **overrides)

    @classmethod
    def shaped(cls, num_steps: int, budget: int, **overrides: Any) -> Forecast:
        """Straight lines between computed steps, without calibration or weights: for comparison with ``prior``.

        The path is planned by the prior at the run's noise levels.  Where those are unknown it is interpolated, by
        index, from LeMiCa's published ones.

        Raises ``ValueError`` for a budget that is not in [2, num_steps].
        """
        return cls(_shaped(num_steps, budget), num_steps, **{"budget": budget, **overrides})

    @classmethod
    def prior(cls, budget: int, **overrides: Any) -> Forecast:
        """``budget`` computed steps of any run, without calibration, as far as is known of other models.

        Path and weights come from the prior that ships with the package (``vaccel.planning.prior``), read at the run's
        own noise levels; every channel has the same weights, which follow what the run's computed steps show.

        Raises ``ValueError`` for a budget below 2.
        """
        require(type(budget) is int and budget >= 2, f"budget must be a whole number of at least 2, got {budget!r}")
        known = calibration(shipped())
        plan = known.plan(budget, per="tensor")
        fields = {
            "artifact": str(shipped()), "seal": known.seal, "per": "tensor", "budget": budget,
            "max_error": known.largest_error(plan.full_steps, 2, "tensor"), "adapt": True,
        }  # fmt: skip
        return cls(plan.full_steps, known.gram.num_steps, **{**fields, **overrides})

    @classmethod
    def load(
        cls, artifact: str | Path, budget: int | None = None, *, objective: str = OBJECTIVE, order: int = 2,
        per: str = "channel", error_growth: bool = True, max_gap: int = MAX_GAP, **overrides: Any,
    ) -> Forecast:  # fmt: skip
        """The best path with exactly ``budget`` computed steps, and its weights, from a calibration.

        It serves runs of any number of steps, at any noise levels, by any solver: the path of a run at other levels
        than the calibration's is planned when they are known, once for each.

        Args:
            objective: "squares", the smallest sum of squared errors, which is how uncorrelated errors add up;
                "leximax", the smallest worst error, then the second worst, and so on; or "sum".
            error_growth: whether paths are compared by their errors at the end of the run (True) or by those at the
                next computed step.  ``gain`` is its deprecated name.
            max_gap: largest distance, in steps, from one computed step to the next.
            overrides: fields of the method, such as ``guard=2.0``.

        Raises ``ValueError`` for a file that is no Forecast artifact, or for a budget below 2; one that needs wider
        gaps than ``max_gap``, where that is given.
        """
        if "gain" in overrides:
            deprecated.warn("Forecast.load", "gain")
            error_growth = overrides.pop("gain")
        known = calibration(artifact)
        corrected = overrides.get("correct", True) is True and "band" not in per
        plans = known.plans(objective, order, per, error_growth, max_gap, corrected)
        fits = type(budget) is int and budget >= min(2, known.gram.num_steps)
        if budget not in plans and not (fits and max_gap == MAX_GAP):
            raise ValueError(
                f"Forecast.load needs a budget, how many steps are computed: of its {known.gram.num_steps} steps "
                f"{artifact} can make {min(plans)} to {max(plans)}, got {budget}"
            )
        rule = objective, order, per, error_growth, max_gap, corrected
        plan = known.refined(budget) if rule == RULE else None
        if plan is None:
            plan = plans[budget] if budget in plans else known.plan(budget, *rule)
        fields = {
            "order": order, "per": per, "artifact": str(artifact), "seal": known.seal, "fitted": known.fitted,
            "max_error": known.largest_error(plan.full_steps, order, per), "predicted": plan.predicted,
            "budget": budget, "objective": objective, "error_growth": error_growth, "max_gap": max_gap,
        }  # fmt: skip
        return cls(plan.full_steps, known.gram.num_steps, **{**fields, **overrides})

    @property
    def stores(self) -> tuple[Store, ...]:
        correcting = gram.CORRECTING if self.corrects else 0
        judged = self.guard is not None or self.adapt  # by a forecast from those before the last
        count = max(self.order + judged, correcting)
        return (VelocityHistory(count, self.banded),)

    @property
    def corrects(self) -> bool:
        """Whether computed steps are corrected; not with weights by frequency band, which one kernel cannot combine."""
        return self.correct and bool(self.artifact) and not self.banded

    @property
    def banded(self) -> bool:
        return "band" in self.per

    @property
    def watches(self) -> tuple[type[Signal], ...]:
        return (*[ForecastError] * (self.guard is not None), *[VelocityProducts] * self.adapt)

    @property
    def adaptive(self) -> bool:
        return False

    def start(self, run: RunInfo) -> Policy:
        if not self.artifact:
            self._check_steps(run)
            weights, method = ExtrapolatedWeights(run.flow or Flow.even(run.num_steps), self.damping), self
            if self.budget is not None and run.flow is not None:
                plan = calibration(shipped()).at(run.flow.levels).plan(self.budget, per="tensor", corrected=False)
                method = dataclasses.replace(self, full_steps=plan.full_steps)
            return _Policy(method, weights, run)
        known = calibration(self.artifact)
        if known.seal != self.seal:
            raise ValueError(f"{self.artifact} is not what it was when this method was loaded from it: load it again")
        method = self
        if run.flow is None:
            self._check_steps(run)
        elif (read := known.at(run.flow.levels)) is not known:
            method = self._elsewhere(read, run)
            known = read
        response = run.flow.response if run.flow is not None and self.corrects else None
        return _Policy(method, CalibratedWeights(known, self.order, self.per, response), run)

    def _check_steps(self, run: RunInfo) -> None:
        unknown = " at noise levels that are unknown or do not fall: Auto computes such in full"
        said = f"this forecast is for {self.num_steps} steps, the run has {run.num_steps}"
        require(run.num_steps == self.num_steps, said + unknown * (run.flow is None))

    def _elsewhere(self, known: Calibration, run: RunInfo) -> Forecast:
        """The method on the path of a run at other levels than the calibration's, which is ``known`` there."""
        if self.budget is None:
            raise ValueError(
                f"the run has other noise levels than {self.artifact}, and these full_steps are for its own: use "
                "Forecast.load(artifact, budget), which plans a path for any levels"
            )
        prior = self.artifact == str(shipped())
        made = "not calibrated: the prior" if prior else f"calibrated at {self.num_steps} steps of other noise levels"
        run.note(f"{made}, read at this run's {run.num_steps}")
        rule = self.objective, self.order, self.per, self.error_growth, self.max_gap, self.corrects
        plan = known.plan(self.budget, *rule)
        largest = known.largest_error(plan.full_steps, self.order, self.per) if self.guard is not None else 0.0
        return dataclasses.replace(
            self, full_steps=plan.full_steps, num_steps=run.num_steps, max_error=largest,
            predicted=0.0 if prior else plan.predicted,
        )  # fmt: skip


class _Policy(Policy):
    def __init__(self, method: Forecast, weights: ExtrapolatedWeights | CalibratedWeights, run: RunInfo):
        self.method, self.weights, self.run = method, weights, run
        self.path = list(method.full_steps)
        self.known: tuple[int, ...] = ()
        self.expected: tuple[Weights, float] | None = None
        self.reading: Any = None
        self.squares: list[float] = []  # squared ratios of the last forecasts' errors to the calibrated ones
        self.extra = 0
        self.computed: list[int] = []  # newest first
        self.products: Any = None  # of their velocities
        self.straightness = Straightness(weights.known, method.order) if method.adapt and method.artifact else None
        self.actions: list[Action] = []
        if method.predicted:
            run.predict(error=method.predicted)
        self._plan()

    def _plan(self, begin: int = 0) -> None:
        """The action of every step along the path, from the step ``begin`` on."""
        path, known, self.actions = set(self.path), (), self.actions[:begin]
        self.weights.set_path(tuple(self.path), tuple(map(_given, self.actions)))
        for i in range(self.run.num_steps):
            if i in path:
                known = (i, *known)[: self.method.order]
            if i >= begin:
                skips = Forecasting(self.weights.weights(known, i)) if i not in path else None
                self.actions.append(skips or Full(self.weights.correction(i)))

    def _fit(self, channels: int) -> None:
        """Where latents have another number of channels than the calibration's, all of them have the same weights."""
        known = getattr(self.weights, "known", None)
        if known is None or known.gram.products.shape[1] in (1, channels):
            return
        if "channel" in self.method.per or known.gram.tensors:
            self.run.note(
                f"calibrated with {known.gram.products.shape[1]} channels, and these latents have {channels}: one "
                "weight for all"
            )
            self.method = dataclasses.replace(self.method, per="tensor")
            self.weights = CalibratedWeights(known.whole(), self.method.order, "tensor", self.weights.response)
            self._plan()

    def decide(self, step: Step) -> Action:
        if step.index == 0:
            self._fit(step.channels.count(step.latents))
        if self.reading is not None:
            self.elements = step.latents[:1].numel()
            self._judge(step)
        if self.products is not None:
            self._adapt(step)
        action = self.actions[step.index]
        if action.is_full:
            guarded = self.method.guard is not None and self.known
            self.expected = self._expectation(step.index) if guarded else None
            self.known = (step.index, *self.known)[: self.method.order]
            self.computed.insert(0, step.index)
        else:
            self.expected = None
        return action

    def _adapt(self, step: Step) -> None:
        """From now on the weights are of the prior that fits the run's own velocities best."""
        found = self.straightness.saw(self.computed, np.array(self.products.tolist()))
        self.products = None
        step.record(straight=self.straightness.share)
        if found is not self.weights.known:
            self.weights = CalibratedWeights(found, self.method.order, self.method.per, self.weights.response)
            self._plan(step.index)

    def _expectation(self, index: int) -> tuple[Weights, float]:
        """The weights that would forecast a computed step's velocity, and the calibrated error of that forecast."""
        known, per = self.weights.known, self.method.per
        return known.weights(self.known, index, per), known.residual_norm(self.known, index, per)

    def amended(self, action: Action, call: Any) -> Action | None:
        return with_own(action, call, self.weights.own, self.method.order)

    def expects(self, index: int) -> Weights | None:
        return self.expected[0] if self.expected is not None else None

    def reshaped(self) -> None:
        self.reading = self.expected = self.products = None

    def observe(self, step: Step, seen: Observation) -> None:
        if seen.action.is_full and step.index not in self.known:
            # Another transformer has taken over, without velocities to forecast from: the step was computed.
            self.known = (step.index, *self.known)[: self.method.order]
            self.computed.insert(0, step.index)
            self._compute(step.index)
        if self.straightness is not None and seen.velocity_products is not None:
            self.products = self.run.buffers.read("velocity.products", seen.velocity_products, "mean")
        if seen.forecast_error is not None:
            self.reading = self.run.buffers.read("forecast.error", seen.forecast_error)

    def _judge(self, step: Step) -> None:
        """Compares the last forecast's error with the calibrated one; above the guard's bound, a step is computed."""
        error = max(self.reading.tolist()) / math.sqrt(self.elements)
        self.reading = None
        self.squares = [*self.squares[-2:], (error / max(self.expected[1], 1e-12)) ** 2]
        ratio = math.sqrt(sum(self.squares) / len(self.squares))
        step.record(forecast_error=ratio, measured=error, calibrated=self.expected[1], judged=self.computed[0])
        planned = min((f for f in self.path if f >= step.index), default=self.run.num_steps)
        if ratio <= self.method.guard or planned == step.index:
            return
        bound, end = self.method.guard * self.method.max_error, planned
        while end > step.index and ratio * self.weights.known.error(self.known, end, self.method.per) > bound:
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
            verdict = (
                "as calibrated" if not self.extra else f"forecast errors too large, computed {self.extra} further steps"
            )
            self.run.note(f"guard: {verdict}")


def _given(action: Action) -> Weights | None:
    """The weights of the velocity that the solver was given at a step; None for the model's own."""
    return action.correction if isinstance(action, Full) else action.weights


def _shaped(num_steps: int, budget: int) -> tuple[int, ...]:
    """The published schedules of Wan 2.1, interpolated by budget and share of the run, with no step twice."""
    step_count(num_steps)
    require(2 <= budget <= num_steps, f"budget must be 2 to {num_steps}, got {budget}")
    steps, budgets = PUBLISHED["wan2.1-t2v-14b"]
    counts = sorted(budgets)
    shares = np.linspace(0, 1, budget)
    rows = [np.interp(shares, np.linspace(0, 1, n), np.array(parsed_steps(budgets[n])) / (steps - 1)) for n in counts]
    share = budget / num_steps
    published = [n / steps for n in counts]
    mixed = [np.interp(share, published, [row[k] for row in rows]) for k in range(budget)]
    places = np.round(np.array(mixed) * (num_steps - 1)).astype(int)
    for k in range(1, budget):  # steps that were rounded to the same one are spread
        places[k] = max(places[k], places[k - 1] + 1)
    for k in range(budget - 1, -1, -1):
        places[k] = min(places[k], num_steps - budget + k)
    return tuple(places.tolist())
