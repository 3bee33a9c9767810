"""Calibrations: what a method needs to know of a model, measured by running it and kept as an artifact."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..extras import needed

if TYPE_CHECKING:
    from .forecast import calibrate_forecast
    from .lemica import calibrate_lemica
    from .lemica_from import lemica_from_forecast
    from .loops import record
    from .mixcache import calibrate_mixcache
    from .refining import refine
    from .teacache import calibrate_teacache

__all__ = [
    "calibrate_forecast",
    "calibrate_lemica",
    "calibrate_mixcache",
    "calibrate_teacache",
    "lemica_from_forecast",
    "record",
    "refine",
]

#: name -> its module.  Loops are recorded without diffusers; the others run its pipelines.
_LAZY = {
    "calibrate_forecast": "forecast", "calibrate_lemica": "lemica", "calibrate_mixcache": "mixcache",
    "calibrate_teacache": "teacache", "lemica_from_forecast": "lemica_from", "record": "loops", "refine": "refining",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed(f"vaccel.calibrate.{name}"):
        value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value
