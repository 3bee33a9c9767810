"""The guidance of a pipeline's current step: its scale, and whether there is a second branch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ...models import Family


def arguments_of(pipe: Any, base: type, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline call's arguments by name, defaults included; only those given where they do not fit."""
    try:
        bound = inspect.signature(base.__call__).bind(pipe, *args, **kwargs)
    except (TypeError, ValueError):
        return dict(kwargs)
    bound.apply_defaults()
    found = dict(bound.arguments)
    return {**found, **found.pop("kwargs", {})}


def guider_of(pipe: Any) -> Any:
    """The guider of a modular pipeline, None elsewhere."""
    return getattr(pipe, "guider", None)


def scale(pipe: Any, family: Family, stage: int, arguments: Mapping[str, Any]) -> float:
    """w of the pipeline's current step."""
    guider = guider_of(pipe)
    if guider is None:
        return family.guidance(pipe, stage, arguments)
    w = float(getattr(guider, "guidance_scale", 1.0))
    return w + 1 if getattr(guider, "use_original_formulation", False) else w


def has_negative(arguments: Mapping[str, Any]) -> bool:
    """Whether the call was given a negative prompt."""
    return any(v is not None for k, v in arguments.items() if k.startswith("negative_prompt"))
