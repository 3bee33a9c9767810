"""Calibrations: what a method needs to know of a model, measured by running it and kept as an artifact."""

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
