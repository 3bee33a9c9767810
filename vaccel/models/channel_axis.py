"""Which axis of the latents counts channels, of a model that nobody describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def axis_of(shape: Sequence[int], config: Mapping[str, Any] | None = None) -> int:
    """The axis of latents [rows, ...] that counts channels, as far as their shape and the model's configuration tell.

    It is the only one that is as long as one of the numbers of channels that the configuration names.  Where that does
    not decide, it is the first after the rows; of latents with three axes, which are tokens [rows, tokens, channels] or
    sound [rows, channels, length], the shorter one: every channel has weights of its own, and there are few.
    """
    if len(shape) < 3:
        return 1
    named = {v for k, v in (config or {}).items() if k.endswith("channels") and type(v) is int}
    fits = [axis for axis in range(1, len(shape)) if shape[axis] in named]
    if len(fits) == 1:
        return fits[0]
    if len(shape) == 3 and not fits:
        return 1 if shape[1] < shape[2] else 2
    if len(shape) > 5 and not fits:  # samples that have an axis of rows themselves
        return next((axis for axis in range(1, len(shape)) if shape[axis] > 1), 1)
    return fits[0] if fits else 1


def config_of(model: Any) -> Mapping[str, Any]:
    """A model's or a scheduler's configuration; empty where it has none that could be read."""
    config = getattr(model, "config", None)
    if isinstance(config, Mapping):
        return config
    # An object, whose fields may be its class's.
    held = {**getattr(type(config), "__dict__", {}), **getattr(config, "__dict__", {})} if config is not None else {}
    return {k: v for k, v in held.items() if isinstance(k, str) and not k.startswith("_") and _plain(v)}


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))
