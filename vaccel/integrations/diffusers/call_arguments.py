"""The arguments of a pipeline's call, looked at before any forward."""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

#: Arguments that are sizes or counts, whatever their annotations say.
COUNTS = ("height", "width", "num_frames", "max_sequence_length", "num_inference_steps")


def check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for arguments that the pipeline's call does not take, that are not of their kind, for sizes
    that are no sizes and for numbers that are not finite."""
    takes = inspect.signature(type(pipe).__call__).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    try:
        hints = typing.get_type_hints(type(pipe).__call__)
    except Exception:  # annotations that cannot be resolved say nothing
        hints = {}
    for name, value in call.items():
        if (name not in takes and not open_ended) or name == "self":
            near = difflib.get_close_matches(name, takes, 1)
            guess = f", did you mean {near[0]}?" if near else ""
            raise ValueError(f"{type(pipe).__name__}'s call takes no {name}{guess}")
        kinds = _kinds(hints.get(name))
        if kinds and not _is(value, kinds):
            wanted = " or ".join(sorted("nothing" if k is type(None) else k.__name__ for k in kinds))
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
        if name in COUNTS and value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")


def _kinds(hint: Any) -> set[type]:
    """The plain kinds that an annotation allows; empty where it says nothing that could be checked."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        every = [_kinds(member) for member in typing.get_args(hint)]
        return set().union(*every) if all(every) else set()
    kind = typing.get_origin(hint) or hint
    return {kind} if kind in (int, float, str, bool, list, dict, tuple, type(None)) else set()


def _is(value: Any, kinds: set[type]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (isinstance(value, int) and float in kinds)
