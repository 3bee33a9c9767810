"""Which method a run gets: from what the node's user asks for, once the run's noise levels are known.

Amounts count calls of the model, as many as a sampler makes: Heun's 20 steps are 39 of them.  Nothing has to be
calibrated: paths, weights and what is to be expected of them come from the prior that ships with the package.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from ...actions import Action, Full, Weights
from ...methods import Auto, EasyCache, Forecast, Method, Policy, Schedule
from ...methods.auto import FEW
from ...methods.base import Observation, Step
from ...methods.schedule import DAMPING
from ...planning.calibration import Calibration, calibration
from ...planning.flow import Flow
from ...planning.prior import shipped

#: What an amount may be, by method; the first is what it is where nothing else was asked for.
METHODS: dict[str, tuple[str, ...]] = {
    "Auto": ("speed", "psnr", "computed calls"),
    "Forecast": ("speed", "computed calls"),
    "TeaCache": ("speed", "computed calls", "threshold"),
    "EasyCache": ("threshold",),
    "Schedule": ("speed", "computed calls", "list"),
}
AIMS = ("speed", "computed calls", "psnr", "threshold", "list")
#: Of the amount, by aim: what lies beyond was meant for another aim.
RANGES = {"speed": (1.0, 50.0), "computed calls": (2.0, 1e4), "psnr": (10.0, 1e3), "threshold": (0.0, 1.0),
          "list": (-math.inf, math.inf)}  # fmt: skip
#: The share of a run that EasyCache always computes at its beginning.
WARMUP = 0.1


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a node asks for.

    Args:
        method: one of ``METHODS``.
        aim: what ``amount`` is, one of those the method takes: "speed", calls over computed calls; "computed calls";
            "psnr" in dB, with respect to the full run; "threshold", of TeaCache or EasyCache; "list", of a Schedule.
        amount: of the aim.
        start_percent, end_percent: of sampling, as ComfyUI counts them: what lies outside is computed.
        calls: of a Schedule by list: "0-9, 12, 15" are those that are computed.

    Raises ``ValueError`` for a method that does not exist, an aim that it does not have, an amount out of range.
    """

    method: str = "Auto"
    aim: str = "speed"
    amount: float = 2.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    calls: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        aims = METHODS[self.method]
        if self.aim not in aims:
            raise ValueError(f"{self.method} takes {' or '.join(aims)}, not {self.aim!r}")
        least, most = RANGES[self.aim]
        if not (math.isfinite(self.amount) and least <= self.amount <= most):
            raise ValueError(f"{self.aim} must be {least:g} to {most:g}, got {self.amount!r}")
        if not 0 <= self.start_percent <= self.end_percent <= 1:
            raise ValueError(f"0 <= start <= end <= 1 does not hold: {self.start_percent}, {self.end_percent}")
        if self.aim == "list":
            listed(self.calls)

    def budget(self, calls: int) -> int:
        """How many of a run's calls are computed."""
        wanted = calls / self.amount if self.aim == "speed" else self.amount
        return max(2, min(calls, round(wanted)))


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The method of one run.

    Attributes:
        expected: (PSNR in dB, that which nineteen runs in twenty reach) of the picture or clip against the full run's,
            as other models'; None where nothing is known of it.
        notes: what the trace is to say.
    """

    method: Method
    expected: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def chosen(choice: Choice, flow: Flow, outside: Collection[int], *, stochastic: bool) -> Chosen:
    """The method of a run along ``flow`` whose calls ``outside`` are computed whatever it says."""
    calls = flow.num_steps
    if calls < 2:
        return _all(calls, "a run of one call has nothing to skip")
    if choice.method == "EasyCache":
        return Chosen(EasyCache(choice.amount, max(1, round(WARMUP * calls))))
    known = calibration(shipped()).at(flow.levels)
    if choice.method == "Schedule":
        return Chosen(_scheduled(choice, calls))
    if choice.method == "TeaCache":
        return Chosen(_by_change(choice, known, calls))
    if choice.method == "Auto" and calls <= FEW:
        return _all(calls, f"of {calls} calls nothing is known that is safe to skip: all are computed")
    if choice.aim == "psnr":
        return _promised(choice, flow, known, outside, stochastic)
    path = _planned(known, choice.budget(calls), outside, corrected=not stochastic)
    return _along(path, flow, known, outside, stochastic)


def _all(calls: int, said: str) -> Chosen:
    return Chosen(Schedule(range(calls), num_steps=calls, reuse="residual"), notes=(said,))


def _along(path: tuple[int, ...], flow: Flow, known: Calibration, outside: Collection[int], stochastic: bool) -> Chosen:
    """Forecasts beside the computed calls of ``path``, of the velocity or of x_0."""
    calls, computed = flow.num_steps, len({*path, *outside})
    if computed >= calls:
        return _all(calls, "all calls are computed, as asked for")
    if stochastic:
        said = (
            "the sampler adds noise between steps, which no earlier velocity contains: the last estimates of x_0 stand "
            "in, and how near that comes to the full run is not known in advance"
        )
        return Chosen(Forecast(path, calls, damping=DAMPING), notes=(said,))
    expected = _expected(known, computed)
    return Chosen(Forecast.prior(len(path)), expected)


def _expected(known: Calibration, computed: int) -> tuple[float, float] | None:
    return known.fidelity.at(known.plan(computed, per="tensor").predicted) if known.fidelity is not None else None


def _promised(choice: Choice, flow: Flow, known: Calibration, outside: Collection[int], stochastic: bool) -> Chosen:
    """The fewest computed calls with which the PSNR that was asked for can be expected."""
    calls = flow.num_steps
    if stochastic:
        return _all(calls, "no PSNR is known of a sampler that adds noise between steps: all calls are computed")
    auto = Auto(psnr=choice.amount)
    good = auto.reaching(auto.uncalibrated(calls, flow))
    if good is None or good.budget >= calls:
        return _all(calls, f"{choice.amount:g} dB cannot be expected of fewer calls: all are computed")
    path = known.plan(good.budget, per="tensor").full_steps
    return _along(path, flow, known, outside, stochastic)


def _planned(known: Calibration, budget: int, outside: Collection[int], *, corrected: bool) -> tuple[int, ...]:
    """The longest path of the prior's with which, and with the calls outside, no more than ``budget`` are computed."""
    for count in range(budget, 1, -1):
        path = known.plan(count, per="tensor", corrected=corrected).full_steps
        if len({*path, *outside}) <= budget:
            break
    return path


def _scheduled(choice: Choice, calls: int) -> Schedule:
    """The calls that were listed, or so many of them evenly spaced; those of a shorter run that it has."""
    if choice.aim == "list":
        steps = sorted({0, *(step for step in listed(choice.calls) if step < calls)})
    else:
        count = choice.budget(calls)
        steps = sorted({round(k * (calls - 1) / (count - 1)) for k in range(count)})
    return Schedule(steps, num_steps=calls, reuse="forecast")


def _by_change(choice: Choice, known: Calibration, calls: int) -> Schedule:
    """TeaCache's rule where a model's embedding of the timestep cannot be reached.

    acc += what is expected of the change of the output from one level to the next; while acc < threshold the residual
    of the output is reused, else the call is computed and acc starts again at 0.  The expectation, which TeaCache fits
    a polynomial of the embedding's change to, is the prior's.  The first and the last call are computed.
    """
    products = known.gram.grouped("tensor")[0]
    squares = [products[i, i] + products[i - 1, i - 1] - 2 * products[i, i - 1] for i in range(1, calls)]
    changes = [math.sqrt(max(s, 0.0) / products[i, i]) for i, s in enumerate(squares)]

    def steps(threshold: float) -> list[int]:
        found, sum_of = [0], 0.0
        for i, change in enumerate(changes, 1):
            sum_of += change
            if not sum_of < threshold or i == calls - 1:
                found.append(i)
                sum_of = 0.0
        return found

    if choice.aim == "threshold":
        return Schedule(steps(choice.amount), num_steps=calls, reuse="residual")
    low, high, count = 0.0, sum(changes) + 1.0, choice.budget(calls)
    for _ in range(50):  # the largest threshold that still computes as many
        middle = (low + high) / 2
        low, high = (middle, high) if len(steps(middle)) >= count else (low, middle)
    return Schedule(steps(low), num_steps=calls, reuse="residual")


def listed(text: str) -> list[int]:
    """The calls of a list such as "0-9, 12, 15".  Raises ``ValueError`` for anything else."""
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()) or len(part) > 20:
            raise ValueError(f'calls must be a list such as "0-9, 12, 15", got {part!r}')
        end = int(last) if dash else int(first)
        if end > 10_000:
            raise ValueError(f"call {end} is beyond any run")
        found += range(int(first), end + 1)
    if not found:
        raise ValueError('calls must name those that are computed, such as "0-9, 12, 15"')
    return found


class Windowed(Policy):
    """A policy whose steps ``outside`` are computed whatever it decides."""

    def __init__(self, policy: Policy, outside: Collection[int]):
        self.policy, self.outside = policy, frozenset(outside)

    def decide(self, step: Step) -> Action:
        action = self.policy.decide(step)
        return Full() if step.index in self.outside and not action.is_full else action

    def observe(self, step: Step, seen: Observation) -> None:
        self.policy.observe(step, seen)

    def reshaped(self) -> None:
        self.policy.reshaped()

    def amended(self, action: Action, call: Any) -> Action | None:
        return self.policy.amended(action, call)

    def expects(self, index: int) -> Weights | None:
        return self.policy.expects(index)

    def finish(self, step: Step, seen: Observation) -> None:
        self.policy.finish(step, seen)
