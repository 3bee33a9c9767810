"""Low spatial frequencies of latents: what tells the bands of a velocity apart."""

from __future__ import annotations

import math

import numpy as np


def low_frequencies(size: int, share: float = 0.5) -> np.ndarray:
    """[size, size], the projection onto the lowest ``share`` of the frequencies of an orthonormal DCT-II."""
    frequency, place = np.arange(math.ceil(share * size))[:, None], np.arange(size)[None]
    cosines = np.cos(np.pi * (place + 0.5) * frequency / size) * math.sqrt(2 / size)
    cosines[0] /= math.sqrt(2)
    return cosines.T @ cosines
