"""The kinds of numbers and the objects that several formats of artifacts share."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

#: Larger numbers are none that anything measures; squares and sums of smaller ones stay finite in fp64.
LARGEST = 1e50
#: Of a run: enough for every training timestep that there is, few enough that a schedule is solved in memory.
MOST_STEPS = 4096

Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Meta(ge=0, le=LARGEST)]
Above0 = Annotated[float, Meta(gt=0, le=LARGEST)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Error = Annotated[float, Meta(ge=0)]  # infinity allowed, as the solver has it
Index = Annotated[int, Meta(ge=0, lt=2**31)]
Count = Annotated[int, Meta(ge=1, lt=2**31)]
Forwards = Annotated[int, Meta(ge=0, lt=2**53)]
Steps = Annotated[int, Meta(ge=1, le=MOST_STEPS)]
Bands = Annotated[int, Meta(ge=1, le=2)]
Values = Annotated[list[Amount], Meta(min_length=1)]
#: (where, what is wrong there)
Fault = tuple[str, str]


class Declared(Struct):
    """An object with these fields, and any others that are not checked."""

    def faults(self) -> Iterator[Fault]:
        """Faults that involve several fields; only the first is reported."""
        yield from ()


class Model(Declared, kw_only=True):
    name: str = field(name="class")
    config: str


class Scheduler(Declared, kw_only=True):
    name: str = field(name="class")
    config: dict[str, Any]


class Weights(Declared, kw_only=True):
    """What a calibration was made on, of both transformers (``models.weights_digest.identity``)."""

    weights: str
    adapters: str
    storage: str


class Calibrated(Declared, kw_only=True):
    """What every calibration records about how it was made."""

    model: Model
    scheduler: Scheduler
    call: dict[str, Any] = {}
    weights: Weights | UnsetType = UNSET  # files of earlier versions do not say
    prompts: str | UnsetType = UNSET


def step_count(value: Any, name: str = "num_steps") -> int:
    """A number of steps that a run may have.  Raises ``ValueError`` for any other, before anything is made of it."""
    try:
        steps = operator.index(value) if not isinstance(value, bool) else 0
    except TypeError:
        steps = 0
    if not 1 <= steps <= MOST_STEPS:
        got = repr(value) if not isinstance(value, int) or abs(value) < 2**63 else "a very large number"
        raise ValueError(f"{name} must be at least 1 and at most {MOST_STEPS}, a whole number, got {got}")
    return steps


def step_list(values: Iterable[Any], name: str = "full_steps") -> tuple[int, ...]:
    """The steps of a run that are listed, ascending, each once.

    Raises ``ValueError`` for what is no list of whole numbers, or longer than a run may be.
    """
    try:
        found = list(islice(values, MOST_STEPS + 1))
        if len(found) > MOST_STEPS or isinstance(values, str):
            raise ValueError(f"{name} must list at most {MOST_STEPS} steps")
        return tuple(sorted({operator.index(step) for step in found}))
    except TypeError:
        raise ValueError(f"{name} must be a list of whole numbers, got {values!r:.60}") from None


def is_whole_number(text: str) -> bool:
    """Whether a field's name is a whole number >= 0, without sign or leading zeros."""
    return re.fullmatch(r"0|[1-9][0-9]{0,8}", text, re.ASCII) is not None
