"""Schedule: a fixed list of actions, decided before the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar, Literal

from ..actions import (
    Action,
    Expert,
    Forecast,
    Full,
    Guidance,
    Output,
    Rescale,
    Residual,
    Resume,
    Small,
    Weights,
    from_json,
)
from ..actions.forecast import with_own
from ..cache import BlockResidual, BlockStates, GuidanceDelta, LastOutput, OutputResidual, Store, VelocityHistory
from ..planning.flow import Flow
from ..planning.forecast_weights import extrapolated
from ..planning.schema import MOST_STEPS, step_count, step_list
from .base import ExpertWeights, Method, Observation, Policy, RunInfo, Step, require

#: What stands in for a step that is not computed: x + the residual of the block stack, head recomputed; x + that of the
#: output; the last output; a forecast from the last two outputs.
Reuse = Literal["blocks", "residual", "output", "forecast"]
_STAND_INS: dict[str, Action] = {
    "blocks": Residual(), "residual": Residual("output"), "output": Output(), "forecast": Forecast(),
}  # fmt: skip
#: How much of the straight line through the last two velocities a forecast goes along, where nothing is calibrated.
DAMPING = 0.5


@dataclasses.dataclass(frozen=True, init=False)
class Schedule(Method):
    """Fixed actions, one a step.

    ``Schedule([0, 1, 2, 5, 9], num_steps=10)`` is Full at the listed steps and a residual elsewhere;
    ``Schedule.from_timeline("FFrFrr")`` takes any mix of letters, ``trace.as_schedule()`` what a run did.

    Args:
        full_steps: step indices computed in full, in [0, num_steps); step 0 must be among them.
        num_steps: T of the runs it is for; a run with another number of steps is refused.
        reuse: what stands in for the other steps: "blocks" (x + the residual of the block stack, head recomputed),
            "residual" (x + the residual of the output), "output" (the last output again) or "forecast" (the straight
            line through the last two outputs' velocities, damped by half).  By default "blocks" where a family
            describes the model, and "residual" where it is seen from outside.

    Raises ``ValueError`` for indices out of range, or for a first step with nothing to reuse.  One with ``Expert``
    steps shows what a run did; it cannot run, as it has no weights to switch between.
    """

    id: ClassVar[str] = "schedule"

    actions: tuple[Action, ...]

    def __init__(self, full_steps: Iterable[int], *, num_steps: int, reuse: Reuse | None = None):
        num_steps, full = step_count(num_steps), step_list(full_steps)
        outside = [i for i in full if not 0 <= i < num_steps]
        require(not outside, f"full_steps {outside} are outside the run of {num_steps} steps")
        stand_in = _stand_in(reuse)
        computed = set(full)
        actions = [Full() if i in computed else stand_in for i in range(num_steps)]
        self._set(tuple(actions), insists=reuse == "blocks")

    def _set(self, actions: tuple[Action, ...], *, insists: bool = False) -> None:
        require(len(actions) > 0, "a schedule needs at least one step")
        step_count(len(actions), "the number of actions")
        seen: set[str] = set()
        for i, action in enumerate(actions):
            need = _needs(action)
            require(need <= seen, f"step {i} ({type(action).__name__}) reuses what no earlier step has computed")
            seen |= {"large"} if isinstance(action, Full) else {"small"} if isinstance(action, Small) else set()
        object.__setattr__(self, "actions", actions)
        # Whether the residual of the blocks was asked for by name: then nothing else will do.  No part of the data.
        object.__setattr__(self, "_insists", insists)

    @classmethod
    def from_actions(cls, actions: Iterable[Action]) -> Schedule:
        """From actions, one a step.  Raises ``ValueError`` for a step with nothing to reuse."""
        self = cls.__new__(cls)
        self._set(tuple(islice(actions, MOST_STEPS + 1)))
        return self

    @classmethod
    def from_timeline(cls, letters: str, *, reuse: Reuse | None = None) -> Schedule:
        """From a timeline's letters (``vaccel.actions``); "r" is what ``reuse`` says, "b" resumes after block 0.

        Raises ``ValueError`` for an unknown letter, or a step with nothing to reuse.
        """
        stand_in = _stand_in(reuse)
        actions = (from_json(letter) for letter in letters)
        made = cls.from_actions(stand_in if isinstance(a, Residual) else a for a in actions)
        object.__setattr__(made, "_insists", reuse == "blocks")
        return made

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Schedule:
        given = fields.get("actions")
        require(isinstance(given, (list, tuple)), "actions must be a list of actions, one a step")
        require(len(fields) == 1, f"Schedule has no fields but actions, got {', '.join(sorted(map(str, fields)))}")
        step_count(len(given), "the number of actions")
        found = []
        for number, action in enumerate(given):
            try:
                found.append(from_json(action))
            except ValueError as error:
                raise ValueError(f"actions[{number}]: {error}") from None
        return cls.from_actions(found)

    def to_json(self) -> dict[str, Any]:
        return {"method": self.id, "actions": [a.to_json() for a in self.actions]}

    @property
    def timeline(self) -> str:
        """One letter a step."""
        return "".join(a.letter for a in self.actions)

    @property
    def needs_small(self) -> bool:
        return any(isinstance(a, (Small, Rescale)) or getattr(a, "model", "") == "small" for a in self.actions)

    @property
    def experts(self) -> ExpertWeights | None:
        require(
            not any(isinstance(a, Expert) for a in self.actions),
            "this schedule switches between experts, whose weights no schedule has: use vaccel.DualExpert(folder)",
        )
        return None

    @property
    def stores(self) -> tuple[Store, ...]:
        needed = {(a.model, a.reuse) for a in self.actions if isinstance(a, Residual)}
        rescales = {a.magnitude for a in self.actions if isinstance(a, Rescale)}
        kinds = {type(a) for a in self.actions}
        found: list[Store] = [BlockResidual(m) for m in ("large", "small") if (m, "blocks") in needed]
        if rescales or ("large", "output") in needed:
            found.append(OutputResidual())
        if "projection" in rescales or kinds & {Output, Guidance, Resume}:
            found.append(LastOutput())
        if kinds & {Guidance, Resume}:
            found.append(GuidanceDelta())
        if Resume in kinds:
            blocks = tuple(sorted({a.block for a in self.actions if isinstance(a, Resume)}))
            both = any(isinstance(a, Resume) and a.branches == "both" for a in self.actions)
            found.append(BlockStates(blocks, "both" if both else "cond"))
        if remembered := self._remembers:
            found.append(VelocityHistory(remembered, self.banded))
        return tuple(found)

    def outside(self) -> Method:
        at_output = (
            dataclasses.replace(a, reuse="output") if isinstance(a, Residual) and a.model == "large" else a
            for a in self.actions
        )
        if self._insists:
            return super().outside()
        return super(Schedule, Schedule.from_actions(at_output)).outside()

    @property
    def adaptive(self) -> bool:
        return False

    def start(self, run: RunInfo) -> Policy:
        require(
            run.num_steps == len(self.actions),
            f"this schedule is for {len(self.actions)} steps, the run has {run.num_steps}",
        )
        _ = self.experts  # raises where it has some
        blocks = sorted({a.block for a in self.actions if isinstance(a, Resume)})
        outside = [b for b in blocks if not 0 <= b < run.depth]
        require(not outside, f"this schedule resumes after blocks {outside}, the model has {run.depth}")
        if not any(isinstance(a, Forecast) and a.weights is None for a in self.actions):
            return _Fixed(self.actions)
        return _Forecasting(self.actions, run.flow or Flow.even(run.num_steps))

    @property
    def _forecasts(self) -> list[Weights | None]:
        forecast = [a.weights for a in self.actions if isinstance(a, Forecast)]
        forecast += [weights for a in self.actions if isinstance(a, Forecast) for _, weights in a.own]
        return forecast + [a.correction for a in self.actions if isinstance(a, Full) and a.correction is not None]

    @property
    def _remembers(self) -> int:
        return max((2 if w is None else len(w.values) for w in self._forecasts), default=0)

    @property
    def banded(self) -> bool:
        return any(w is not None and w.values.shape[1] > 1 for w in self._forecasts)


def _stand_in(reuse: str | None) -> Action:
    reuse = reuse or "blocks"
    known = ", ".join(map(repr, _STAND_INS))
    require(reuse in _STAND_INS, f"reuse must be one of {known}, got {reuse!r}")
    return _STAND_INS[reuse]


def _needs(action: Action) -> set[str]:
    if isinstance(action, Residual):
        return {action.model}
    return {"large"} if isinstance(action, (Rescale, Output, Guidance, Resume, Forecast)) else set()


class _Fixed(Policy):
    """What was planned, step by step."""

    def __init__(self, actions: tuple[Action, ...]):
        self.actions = actions

    def decide(self, step: Step) -> Action:
        return self.actions[step.index]


class _Forecasting(Policy):
    """With forecasts whose weights follow from what was computed before."""

    def __init__(self, actions: tuple[Action, ...], flow: Flow):
        self.given, self.flow = actions, flow
        self.computed: list[int] = []  # newest first
        self.actions = self._planned(0)

    def _planned(self, begin: int) -> list[Action]:
        """The actions from step ``begin`` on, where it is all computed that is planned to be."""
        known, planned = list(self.computed), list(self.given[:begin])
        for i, action in enumerate(self.given[begin:], begin):
            if isinstance(action, Full):
                known.insert(0, i)
            elif isinstance(action, Forecast) and action.weights is None:
                action = Forecast(extrapolated(self.flow.levels, tuple(known[:2]), i, DAMPING))
            planned.append(action)
        return planned

    def decide(self, step: Step) -> Action:
        return self.actions[step.index]

    def amended(self, action: Action, call: Any) -> Action | None:
        if not isinstance(action, Forecast):
            return None
        return with_own(action, call, lambda known, step: extrapolated(self.flow.levels, known, step, DAMPING))

    def observe(self, step: Step, seen: Observation) -> None:
        if isinstance(seen.action, Full):
            self.computed.insert(0, step.index)
            if not isinstance(self.given[step.index], Full):  # nothing was there to forecast from
                self.actions = self._planned(step.index + 1)
