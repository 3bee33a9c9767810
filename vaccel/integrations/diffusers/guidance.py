"""The guidance of a pipeline's current step: its scale, and whether there is a second branch."""

from __future__ import annotations

import functools
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


@functools.cache
def _switches(kind: type) -> tuple[str, ...]:
    """The methods by which a kind of guider says what of it is on."""
    return tuple(n for n in dir(kind) if n.startswith("_is_") and n.endswith("_enabled"))


def conditions(pipe: Any) -> tuple[Any, ...]:
    """What tells apart the predictions that a modular pipeline's guiders ask for at the current step.

    A guider switches parts of itself on and off along the run (classifier-free guidance, skipped layers), and then its
    second prediction of a step is another one than before.
    """
    said: list[Any] = []
    for name in ("guider", "guider_2"):
        guider = getattr(pipe, name, None)
        if guider is not None:
            said += [getattr(guider, n)() for n in _switches(type(guider))]
            said.append(getattr(guider, "num_conditions", None))
    return tuple(said)


def scale(pipe: Any, family: Family, stage: int, arguments: Mapping[str, Any]) -> float:
    """w of the pipeline's current step."""
    guider = guider_of(pipe)
    if guider is None:
        return family.guidance(pipe, stage, arguments)
    w = float(getattr(guider, "guidance_scale", 1.0))
    return w + 1 if getattr(guider, "use_original_formulation", False) else w


def bound(arguments: Mapping[str, Any]) -> list[Any]:
    """What else of a call a calibration is bound to: whether it has a negative prompt, and its LoRA scale."""
    negative = any(v is not None for k, v in arguments.items() if k.startswith("negative_prompt"))
    names = ("attention_kwargs", "joint_attention_kwargs", "cross_attention_kwargs")
    scales = [(arguments.get(name) or {}).get("scale") for name in names]
    return [negative, *(None if s is None else round(float(s), 6) for s in scales)]
