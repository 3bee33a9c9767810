"""What a run did: per step the action, the values that led to it, the forwards it cost, the time it took."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from ..actions import Action

if TYPE_CHECKING:
    from ..methods import Schedule


@dataclasses.dataclass(slots=True)
class StepRecord:
    """One step.  ``metrics`` holds per-sample lists; ``large`` and ``small`` count forwards, one a branch computed."""

    index: int
    action: Action
    metrics: dict[str, Any]
    reason: str = ""
    large: int = 0
    small: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class Trace:
    """A run.  ``finished`` is False for a run that was aborted (its steps so far are here)."""

    method: dict[str, Any]
    num_steps: int
    steps: list[StepRecord] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    finished: bool = False
    delivered: Any = None

    def deliver(self, delivered: Any) -> None:
        """Something that the run leaves behind beside this record; no part of its JSON."""
        self.delivered = delivered

    def timeline(self) -> str:
        """One letter a step, as in "FFFFFFFFFFmmmmFmmmm...sss" (letters: ``vaccel.actions``)."""
        return "".join(step.action.letter for step in self.steps)

    @property
    def calls(self) -> dict[str, int]:
        """Transformer forwards, one per branch computed: {"large": n, "small": n}."""
        return {"large": sum(s.large for s in self.steps), "small": sum(s.small for s in self.steps)}

    def as_schedule(self) -> Schedule:
        """This run's actions as a fixed schedule, to replay them.  Raises ``ValueError`` for an aborted run."""
        from ..methods import Schedule

        if len(self.steps) != self.num_steps:
            raise ValueError(f"the run stopped at step {len(self.steps)} of {self.num_steps}: nothing to replay")
        return Schedule.from_actions(step.action for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the timeline and the totals spelled out."""
        steps = [
            {**step.action.to_json(), "metrics": step.metrics, "large": step.large, "small": step.small,
             "seconds": round(step.seconds, 6)} | ({"reason": step.reason} if step.reason else {})
            for step in self.steps
        ]  # fmt: skip
        return {
            "method": self.method,
            "num_steps": self.num_steps,
            "finished": self.finished,
            "timeline": self.timeline(),
            "calls": self.calls,
            "notes": self.notes,
            "steps": steps,
        }

    def __str__(self) -> str:
        calls = self.calls
        state = "" if self.finished else f" (stopped at step {len(self.steps)} of {self.num_steps})"
        return f"{self.timeline()}  large {calls['large']}, small {calls['small']}{state}"

    def dumps(self) -> str:
        return json.dumps(self.to_json())
