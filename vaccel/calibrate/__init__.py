"""Calibrations: what a method needs to know of a model, measured by running it and kept as an artifact."""

from .teacache import calibrate_teacache

__all__ = ["calibrate_teacache"]
