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


#: Switches of guiders that ask for a prediction by other layers or another model; all others are about that without the
#: prompt.
OTHER_PREDICTIONS = ("_is_slg_enabled", "_is_seg_enabled", "_is_pag_enabled", "_is_ag_enabled")


@functools.cache
def _switches(kind: type) -> tuple[str, ...]:
    """The methods by which a kind of guider says what of it is on."""
    return tuple(n for n in dir(kind) if n.startswith("_is_") and n.endswith("_enabled"))


def predictions(pipe: Any, stage: int) -> tuple[str, ...]:
    """What a pipeline's guider asks for at the current step, in the order of the calls; () where there is no guider.

    A guider switches guidance, skipped layers and the like on and off along the run.  By which rule it combines the
    predictions is its own business.
    """
    second = getattr(pipe, "guider_2", None) if stage else None
    guider = second if second is not None else guider_of(pipe)
    if guider is None:
        return ()
    on = [name for name in _switches(type(guider)) if getattr(guider, name)()]
    others = [name for name in on if name in OTHER_PREDICTIONS]
    asked = ("cond", *(["uncond"] if len(on) > len(others) else []), *others)
    count = getattr(guider, "num_conditions", len(asked))
    return asked if count == len(asked) else tuple(f"{n} of {count}" for n in range(count))


def wanted(pipe: Any) -> bool:
    """Whether the pipeline may have two branches in one call, as far as it says so."""
    return getattr(pipe, "do_classifier_free_guidance", True) is not False


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
