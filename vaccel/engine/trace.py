"""What a run did: per step the action, the values that led to it, the forwards it cost, the time it took."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .. import __version__
from ..actions import Action, from_json
from ..planning import files, schema
from ..planning.file_state import state
from ..planning.schema.trace import SCHEMA, Run

if TYPE_CHECKING:
    from ..methods import Schedule

#: Of a trace's file: more than any run of ``schema.MOST_STEPS`` steps and a batch of many samples needs.
MOST_BYTES = 32 * 2**20


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
    """A run.  ``finished`` is False for a run that was aborted (its steps so far are here).

    ``predicted`` is what was expected of it before it began, where something was: "error", the root mean square error
    of the finished latents; "psnr" in dB, and "psnr_low", what nineteen runs in twenty reach.
    """

    method: dict[str, Any]
    num_steps: int
    steps: list[StepRecord] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    finished: bool = False
    delivered: Any = None
    predicted: dict[str, float] = dataclasses.field(default_factory=dict)

    def deliver(self, delivered: Any) -> None:
        """Something that the run leaves behind beside this record; no part of its JSON."""
        self.delivered = delivered

    def predict(self, **values: float) -> None:
        """What is expected of the run, by name."""
        self.predicted |= values

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
        """Plain data, with the timeline and the totals spelled out; ``from_json`` reads it back.

        Values that are no finite numbers are the strings "nan", "inf" and "-inf", which JSON has no numbers for.
        """
        steps = [
            {"index": step.index, **step.action.to_json(),
             "metrics": _spelled(step.metrics),
             "large": step.large, "small": step.small, "seconds": round(step.seconds, 6)}
            | ({"reason": step.reason} if step.reason else {})
            for step in self.steps
        ]  # fmt: skip
        return {
            "schema": SCHEMA,
            "vaccel": __version__,
            "method": _spelled(self.method),
            "num_steps": self.num_steps,
            "finished": self.finished,
            "timeline": self.timeline(),
            "calls": self.calls,
            "predicted": _spelled(self.predicted),
            "notes": self.notes,
            "steps": steps,
        }

    @classmethod
    def from_json(cls, data: Any) -> Trace:
        """A trace from ``to_json``.  Raises ``ValueError`` that names the field that is not what it must be."""
        schema.check_nesting(data)
        found = data.get("schema") if isinstance(data, dict) else None
        if found != SCHEMA or isinstance(found, bool):
            raise ValueError(f"it is not a run's trace of schema {SCHEMA}, which this vaccel {__version__} reads")
        schema.check_as(data, Run)
        trace = cls(data["method"], data["num_steps"], notes=data["notes"], finished=data["finished"])
        trace.predicted = {name: _number(value) for name, value in data["predicted"].items()}
        for number, step in enumerate(data["steps"]):
            try:
                action = from_json({name: value for name, value in step.items() if name not in _OF_STEP})
            except ValueError as error:
                raise ValueError(f"steps[{number}]: {error}") from None
            metrics = {name: _number(value) for name, value in step["metrics"].items()}
            amounts = step["large"], step["small"], float(step["seconds"])
            trace.steps.append(StepRecord(step["index"], action, metrics, step.get("reason", ""), *amounts))
        if data["timeline"] != trace.timeline() or data["calls"] != trace.calls:
            raise ValueError("timeline and calls are not what the steps come to")
        return trace

    def save(self, path: str | Path) -> None:
        """Writes ``to_json`` to a file, for ``vaccel explain``.  Raises ``OSError`` where it cannot be written."""
        files.write_text(path, self.dumps())

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """A trace that ``save`` wrote.

        Raises ``ValueError`` that says why for a file that holds none, or more than ``MOST_BYTES``, and
        ``FileNotFoundError`` where there is no file.
        """
        size = state(path, "a run's trace").size
        if size > MOST_BYTES:
            raise ValueError(f"{path} is no run's trace: it has {size} bytes, at most {MOST_BYTES} are read")
        try:
            with Path(path).open("rb") as file:
                return cls.from_json(msgspec.json.decode(file.read(MOST_BYTES)))
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as a run's trace: {error}") from None

    def __str__(self) -> str:
        calls = self.calls
        state = "" if self.finished else f" (stopped at step {len(self.steps)} of {self.num_steps})"
        return f"{self.timeline()}  large {calls['large']}, small {calls['small']}{state}"

    def dumps(self) -> str:
        return json.dumps(self.to_json())


#: A step's fields beside those of its action.
_OF_STEP = ("index", "metrics", "large", "small", "seconds", "reason")


def _spelled(value: Any) -> Any:
    """A value, or several, as JSON has it."""
    if isinstance(value, dict):
        return {name: _spelled(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelled(each) for each in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _number(value: Any) -> Any:
    """``_spelled`` undone."""
    if isinstance(value, list):
        return [_number(each) for each in value]
    return float(value) if isinstance(value, str) else value
