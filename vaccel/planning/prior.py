"""What is known of a model before anything was measured on it: the trained families' calibrations, by noise level.

Velocities at two noise levels are correlated much alike in models of different kinds.  So the inner products of
several calibrations, summed over channels, read on one grid of levels (``vaccel.planning.levels``) and each divided by
its mean square, are averaged; their error growths geometrically.  What comes of it is a calibration like any other,
with one weight for all channels.  Runs of both models by it relate its predicted errors to PSNR.  ``prior.json`` ships;
it is made by ``python bench/measure_prior.py``.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import artifacts
from .calibration import METHOD, Calibration
from .merging import mean

#: Levels of the grid.
COUNT = 64


def shipped() -> Path:
    """The prior that ships with the package."""
    return Path(str(importlib.resources.files("vaccel.planning"))) / "prior.json"


def combined(
    known: Sequence[Calibration], count: int = COUNT, curves: Sequence[Sequence[tuple[float, float]]] = ()
) -> dict[str, Any]:
    """The data of an artifact: the mean of calibrations of any models (``vaccel.planning.merging``).

    Args:
        curves: (predicted error, PSNR in dB) of each prompt's runs by it.

    Raises ``ValueError`` where there is none, or one whose velocities are all zero.
    """
    if not known:
        raise ValueError("a prior is made of calibrations: none was given")
    anything = {"class": "any", "config": ""}
    return {
        "schema": artifacts.SCHEMA, "method": METHOD, "num_steps": count, "bands": 1, "model": anything,
        "scheduler": {"class": "any", "config": {}}, "call": {},
        "samples": {"mean": mean(known, count, per_element=True) | ({"curves": list(curves)} if curves else {})},
    }  # fmt: skip
