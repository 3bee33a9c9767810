"""What is known of a model before anything was measured on it: the trained families' calibrations, by noise level.

Velocities at two noise levels are correlated much alike in models of different kinds.  So the inner products of
several calibrations, summed over channels, read on one grid of levels (``vaccel.planning.levels``) and each divided by
its mean square, are averaged; their error growths geometrically.  What comes of it is a calibration like any other,
with one weight for all channels.  ``prior.json`` ships; it is made by

    python -m vaccel.planning.prior vaccel/demo/weights/forecast.json vaccel/demo/image_weights/forecast.json \\
        --out vaccel/planning/prior.json
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from . import artifacts
from .calibration import METHOD, Calibration, calibration, packed
from .levels import read_growth, read_products

#: Levels of the grid.
COUNT = 64


def shipped() -> Path:
    """The prior that ships with the package."""
    return Path(str(importlib.resources.files("vaccel.planning"))) / "prior.json"


def combined(known: Sequence[Calibration], count: int = COUNT) -> dict[str, Any]:
    """The data of an artifact: the mean of several calibrations of any models, at ``count`` levels.

    The grid has the density of all their levels together.  A pair of its levels is averaged over those calibrations
    that recorded both; where that leaves matrices that are products of no vectors, the nearest ones are taken.

    Raises ``ValueError`` where there is none, or one whose velocities are all zero.
    """
    if not known:
        raise ValueError("a prior is made of calibrations: none was given")
    every = np.concatenate([each.gram.levels[:-1] for each in known])
    levels = [*np.quantile(every, np.linspace(1, 0, count)).tolist(), 0.0]
    products, pairs = np.zeros((count, count)), np.zeros((count, count))
    growth, covered = np.zeros(count), np.zeros(count)
    for each in known:
        own = each.gram.levels[:-1]
        inside = np.array([own[-1] - 1e-9 <= s <= own[0] + 1e-9 for s in levels[:-1]])
        at = [s for s, good in zip(levels[:-1], inside, strict=True) if good]
        read = read_products(each.gram, [*at, 0.0]).products.sum(axis=(0, 1))
        square = float(np.trace(read)) / len(at)
        if not square > 0:
            raise ValueError("a calibration whose velocities are all zero tells nothing of other models")
        products[np.ix_(inside, inside)] += read / square
        pairs[np.ix_(inside, inside)] += 1
        growth[inside] += np.log(read_growth(own, each.error_growth, at))
        covered[inside] += 1
    products, growth = _semidefinite(products / np.maximum(pairs, 1)), growth / np.maximum(covered, 1)
    sample = {
        "levels": levels, "channels": 1, "elements": 1, "forwards": 0, "seconds": 0.0,
        "error_growth": {str(step): value for step, value in enumerate(np.exp(growth).tolist())},
        "products": packed(products[None, None]),
    }  # fmt: skip
    anything = {"class": "any", "config": ""}
    return {
        "schema": artifacts.SCHEMA, "method": METHOD, "num_steps": count, "bands": 1, "model": anything,
        "scheduler": {"class": "any", "config": {}}, "call": {}, "samples": {"mean": sample},
    }  # fmt: skip


def _semidefinite(matrix: np.ndarray) -> np.ndarray:
    """The nearest matrix of inner products."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def main(
    calibrations: Annotated[list[Path], typer.Argument(help="Forecast artifacts.")],
    out: Annotated[Path, typer.Option(help="The prior's file.")],
) -> None:
    """Average calibrations of several models into a prior for all others."""
    artifacts.replace(out, combined([calibration(path) for path in calibrations]))
    typer.echo(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
