"""Forecast's calibration: inner products of velocities, and how errors grow until the end of a run."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from msgspec import UNSET, Meta, UnsetType

from .errors import place
from .fields import (
    LARGEST,
    MOST_STEPS,
    Above0,
    Amount,
    Bands,
    Calibrated,
    Count,
    Declared,
    Fault,
    Forwards,
    Number,
    Steps,
    is_whole_number,
)


class ForecastSample(Declared, kw_only=True):
    """One full run.  ``Auto`` records none of the ``seconds``; ``products`` is absent once all samples' are summed.

    ``curves`` are trial runs, (predicted error, PSNR in dB), of one prompt each; a merged calibration has several.
    ``trials`` is what older calibrations have: their errors are of paths planned without corrections.
    ``metrics``: the same trial runs by other metrics, by name.
    ``tensors``: how many of the channels are each tensor's, of a model that predicts several.
    """

    levels: Annotated[list[Number], Meta(min_length=2, max_length=MOST_STEPS + 1)]
    channels: Count
    elements: Count
    error_growth: dict[str, Amount]
    forwards: Forwards
    seconds: Amount | UnsetType = UNSET
    trials: list[tuple[Amount, Number]] | UnsetType = UNSET
    curves: list[list[tuple[Amount, Number]]] | UnsetType = UNSET
    metrics: dict[str, list[list[tuple[Amount, Number]]]] | UnsetType = UNSET
    products: str | UnsetType = UNSET
    tensors: Annotated[list[Count], Meta(min_length=1, max_length=64)] | UnsetType = UNSET


class RefinedPath(Declared, kw_only=True, forbid_unknown_fields=True):
    """A path that was found by trying (``vaccel.calibrate.refining``), and how many were."""

    steps: list[int]
    tried: Count
    gain: Number


class Times(Declared, kw_only=True, forbid_unknown_fields=True):
    full: Above0
    skipped: Amount
    beside: Amount


class Forecast(Calibrated, kw_only=True):
    num_steps: Steps
    bands: Bands
    samples: Annotated[dict[str, ForecastSample], Meta(min_length=1)]
    products: str | UnsetType = UNSET
    times: Times | UnsetType = UNSET
    paths: dict[str, RefinedPath] | UnsetType = UNSET
    part: bool = False

    def faults(self) -> Iterator[Fault]:
        first = next(iter(self.samples.values()))
        steps = len(first.levels) - 1
        for name, sample in self.samples.items():
            at = place("samples", name)
            if len(sample.levels) != len(first.levels):
                yield f"{at}.levels", f"must have {len(first.levels)} entries, as in every sample: {len(sample.levels)}"
            if sample.channels != first.channels:
                yield f"{at}.channels", f"must be {first.channels}, as in every sample, got {sample.channels}"
            if sample.tensors != first.tensors:
                yield f"{at}.tensors", "must be those of every other sample"
            elif sample.tensors is not UNSET and sum(sample.tensors) != sample.channels:
                yield f"{at}.tensors", f"must be {sample.channels} channels together, got {sum(sample.tensors)}"
            for step in sample.error_growth:
                if not is_whole_number(step) or int(step) >= steps:
                    yield place(f"{at}.error_growth", step), f"must be named for a step from 0 to {steps - 1}"
            if self.call and sample.seconds is UNSET and sample.trials is UNSET and sample.curves is UNSET:
                yield f"{at}.seconds", "is missing"
        for name, path in ({} if self.paths is UNSET else self.paths).items():
            ordered = all(a < b for a, b in zip(path.steps, path.steps[1:], strict=False))
            if not ordered or path.steps[:1] != [0] or path.steps[-1] >= steps or str(len(path.steps)) != name:
                yield place("paths", name), f"must be {name} steps of {steps} in their order, from 0 on"
        kept = {"products": self.products}
        kept |= {f"{place('samples', name)}.products": sample.products for name, sample in self.samples.items()}
        if not self.part and all(text is UNSET for text in kept.values()):
            yield "products", "is missing, and no sample has any"
        for at, text in kept.items():
            if text is not UNSET and (fault := _not_products(text, self.bands, first.channels, steps)):
                yield at, fault


def _not_products(text: str, bands: int, channels: int, steps: int) -> str | None:
    """What keeps a text from being packed inner products [bands, channels, T, T]."""
    wanted = bands * channels * steps * (steps + 1) // 2
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f8")
    except ValueError:
        return "must be base64 of fp64 numbers"
    if len(values) != wanted:
        shape = f"{bands} bands x {channels} channels x {steps} steps"
        return f"must hold {wanted} numbers, for {shape}, got {len(values)}"
    if not bool((np.abs(values) <= LARGEST).all()):
        return f"must hold numbers, at most {LARGEST:g}"
    rows, columns = np.triu_indices(steps)
    for matrix in values.reshape(-1, len(rows)):
        squares = matrix[rows == columns]
        norms = np.sqrt(np.maximum(squares, 0))
        if (squares < 0).any() or (np.abs(matrix) > norms[rows] * norms[columns] * (1 + 1e-6) + 1e-300).any():
            return "must hold inner products: these are none of any vectors"
    return None
