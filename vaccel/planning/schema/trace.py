"""A run's trace as a file (``vaccel.engine.trace``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from .fields import LARGEST, MOST_STEPS, Amount, Declared, Fault, Forwards, Index

SCHEMA = 1

#: What JSON has no numbers for is spelled out.
Value = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)] | Literal["nan", "inf", "-inf"] | None
Text = Annotated[str, Meta(max_length=10_000)]


class Step(Declared, kw_only=True):
    """One step; the fields of its action, which the action itself checks, stand among these."""

    index: Index
    action: str
    metrics: dict[str, Value | list[Value]]
    large: Forwards
    small: Forwards
    seconds: Amount
    reason: Text | UnsetType = UNSET


class Calls(Struct, kw_only=True, forbid_unknown_fields=True):
    large: Forwards
    small: Forwards


class Run(Declared, kw_only=True, forbid_unknown_fields=True):
    """A run."""

    schema: Literal[1]
    vaccel: Annotated[str, Meta(max_length=100)]
    method: dict[str, Any]
    num_steps: Annotated[int, Meta(ge=0, le=MOST_STEPS)]  # none are known of a loop that could not be followed
    finished: bool
    timeline: Annotated[str, Meta(max_length=MOST_STEPS)]
    calls: Calls
    predicted: dict[str, Value]
    notes: list[Text]
    steps: Annotated[list[Step], Meta(max_length=MOST_STEPS)]

    def faults(self) -> Iterator[Fault]:
        last = -1
        for number, step in enumerate(self.steps):
            if not last < step.index < self.num_steps:
                yield f"steps[{number}].index", f"must be above {last} and below num_steps, got {step.index}"
            last = step.index
