"""Several Forecast calibrations of one model, by different solvers or numbers of steps, in one.

One solver's velocities along its own trajectory correlate a little otherwise than another's.  The mean of their inner
products, read by level, serves both (and others between them); so do the means of their error growths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .calibration import Calibration, packed
from .levels import SAME_LEVEL, read_growth, read_products

#: Levels of a merged calibration at the most.
MOST = 64


def mean(known: Sequence[Calibration], count: int, per_element: bool = False) -> dict[str, Any]:
    """One sample, at ``count`` levels: the mean of several calibrations' products and of the logarithms of growth.

    The grid has the density of all their levels together.  A pair of its levels is averaged over those calibrations
    that recorded both; where that leaves matrices that are products of no vectors, the nearest ones are taken.

    Args:
        per_element: whether products are summed over bands and channels and divided by their mean square: of models
            with other latents.

    Raises ``ValueError`` where there is none, or one whose velocities are all zero.
    """
    every = np.concatenate([each.gram.levels[:-1] for each in known])
    levels = [*np.quantile(every, np.linspace(1, 0, count)).tolist(), 0.0]
    shape, tensors = (1, 1) if per_element else known[0].gram.products.shape[:2], known[0].gram.tensors
    products, pairs = np.zeros((*shape, count, count)), np.zeros((count, count))
    growth, covered = np.zeros(count), np.zeros(count)
    for each in known:
        own = each.gram.levels[:-1]
        inside = np.flatnonzero([own[-1] - SAME_LEVEL <= s <= own[0] + SAME_LEVEL for s in levels[:-1]])
        at = [levels[k] for k in inside]
        read = read_products(each.gram, [*at, 0.0]).products
        if per_element:
            read = read.sum(axis=(0, 1), keepdims=True)
            square = float(np.trace(read[0, 0])) / len(at)
            if not square > 0:
                raise ValueError("a calibration whose velocities are all zero tells nothing of other models")
            read = read / square
        products[..., inside[:, None], inside] += read
        pairs[inside[:, None], inside] += 1
        growth[inside] += np.log(read_growth(own, each.measured_growth or each.error_growth, at))
        covered[inside] += 1
    products, growth = _semidefinite(products / np.maximum(pairs, 1)), growth / np.maximum(covered, 1)
    return {
        "levels": levels, "channels": shape[1], "elements": 1 if per_element else known[0].gram.elements,
        "forwards": 0, "seconds": 0.0, "products": packed(products),
        "error_growth": {str(step): value for step, value in enumerate(np.exp(growth).tolist())},
        **({"tensors": list(tensors)} if tensors and not per_element else {}),
    }  # fmt: skip


def merged(known: Sequence[Calibration]) -> dict[str, Any]:
    """The data of an artifact of several calibrations of one model; what it is bound to is the first one's.

    Predicted errors are related to PSNR by the trial runs of all.

    Raises ``ValueError`` for fewer than two, for calibrations of different models, weights, channels or bands.
    """
    if len(known) < 2:
        raise ValueError(f"calibrations are merged two or more at a time, got {len(known)}")
    first = known[0].data
    for each in known[1:]:
        for name in ("model", "weights", "bands"):
            if each.data.get(name) != first.get(name):
                raise ValueError(f"calibrations of another {name} cannot be merged: {each.data.get(name)}")
        shapes = [(k.gram.products.shape[1], k.gram.elements, *k.gram.tensors) for k in (known[0], each)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"calibrations of other latents cannot be merged: channels and elements {shapes}")
    count = min(MOST, sum(each.gram.num_steps for each in known))
    sample = mean(known, count)
    curves = [curve for each in known for curve in each.curves]
    sample |= {"bands": first["bands"], **({"curves": curves} if curves else {})}
    metrics: dict[str, list] = {}
    for name, found in (item for each in known for item in each.metrics.items()):
        metrics.setdefault(name, []).extend(found)
    if metrics:
        sample["metrics"] = metrics
    kept = ("schema", "method", "bands", "model", "weights", "scheduler", "call", "times", "prompts")
    return {**{name: first[name] for name in kept if name in first}, "num_steps": count, "samples": {"mean": sample}}


def _semidefinite(matrices: np.ndarray) -> np.ndarray:
    """The nearest matrices of inner products."""
    values, vectors = np.linalg.eigh((matrices + np.swapaxes(matrices, -1, -2)) / 2)
    return (vectors * np.maximum(values, 0)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
