"""Arrays as text, exactly."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable

import numpy as np


def pack(values: np.ndarray) -> str:
    """fp64 numbers as text: their bytes, exactly."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode()


def unpack(text: str) -> np.ndarray:
    """The numbers that ``pack`` was called with, flat; not to be written to."""
    return np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64, copy=False)


def summed(texts: Iterable[str]) -> np.ndarray:
    """The sum of the numbers of several texts of ``pack``, added in this order; not to be written to."""
    return functools.reduce(np.add, map(unpack, texts))


def added(texts: Iterable[str]) -> str:
    """``summed`` as a text."""
    return pack(summed(texts))
