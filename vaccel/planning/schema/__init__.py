"""The declared format of every artifact: presence, types and lengths of the fields of calibrations and of experts.

``check`` raises a ``ValueError`` that names the field, such as "samples.run-0.levels must be a list of numbers, got
null".  An artifact that passes can be indexed, counted, added and solved by every reader.  Fields that are not declared
are allowed, except where a reader passes an object on by keywords (``fields``, ``times``).  Unfinished artifacts pass
too: LeMiCa's samples with some of their edges, Forecast's samples with inner products that are not summed yet.

To add a format: a file here with a ``Declared`` class, whose ``faults`` checks what depends on several fields, and its
name in ``FORMATS``.  To rename a field: ``old_names.py``.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType, ValidationError, convert

from .errors import problem
from .experts import Experts
from .fields import MOST_STEPS, Declared, Model, Scheduler, step_count, step_list
from .forecast import Forecast
from .lemica import LeMiCa
from .mixcache import MixCache
from .old_names import translate
from .teacache import TeaCache
from .training_data import TrainingData

__all__ = [
    "FORMATS",
    "MOST_NESTED",
    "MOST_STEPS",
    "check",
    "check_as",
    "check_nesting",
    "step_count",
    "step_list",
    "translate",
]

#: Nesting of an artifact's JSON; what is written is nested a handful of times.
MOST_NESTED = 64


class Plain(Declared, kw_only=True):
    """An artifact of anything else."""

    fields: dict[str, Any] | UnsetType = UNSET
    model: Model | UnsetType = UNSET
    scheduler: Scheduler | UnsetType = UNSET
    samples: dict[str, Any] | UnsetType = UNSET


#: By the method that an artifact names.
FORMATS: dict[str, type[Declared]] = {
    "forecast": Forecast, "lemica": LeMiCa, "mixcache": MixCache, "teacache": TeaCache, "dcm": Experts,
    "dcm-data": TrainingData,
}  # fmt: skip


def check(data: dict[str, Any], method: str) -> None:
    """Raises ``ValueError`` that names the first field of an artifact of ``method`` that is not what it must be."""
    check_as(data, FORMATS.get(method, Plain))


def check_as(data: Any, declared: type[Declared]) -> None:
    """Raises ``ValueError`` that names the first field of an object that is not as declared."""
    try:
        found = convert(data, declared)
    except ValidationError:
        where, what = problem(data, declared)
        raise ValueError(f"{where} {what}") from None
    for where, what in found.faults():
        raise ValueError(f"{where} {what}")


def check_nesting(data: Any) -> None:
    """Raises ``ValueError`` for JSON nested so deep that to write or show it would exhaust the stack."""
    layer = [data] if isinstance(data, (dict, list)) else []
    for _ in range(MOST_NESTED):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not layer:
            return
    raise ValueError(f"it is nested more than {MOST_NESTED} times")
