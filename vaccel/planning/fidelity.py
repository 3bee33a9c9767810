"""What PSNR a run of a predicted error reaches, and which nineteen runs in twenty reach: by a calibration's trial runs.

Every recorded prompt was also run with ``Forecast`` at several budgets, with the weights and paths of the other
prompts' calibration.  So each has a curve of PSNR over the predicted error, and a new prompt is one more of them.  How
far single prompts lie from the mean differs between models by a factor of two, and their distribution has a long tail
downwards: some prompts are on the edge of becoming another picture.  So the promise is the lower of two: of the Student
distribution, whose spread is that of the prompts and of ``SPREAD`` (as if of ``COUNT`` more), and of order: the k-th
lowest of n prompts, k the largest with which nineteen runs in twenty, or more, reach it for three sets of calibration
prompts in five.  That is k = 1 up to 39 prompts, 2 of 40 and 3 of 80.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

#: The share of runs that reach what is promised.
SHARE = 0.95
#: Standard deviation between prompts, in dB, before any was seen: what the trained families show (3 to 6).
SPREAD = 5.0
#: So many prompts' worth of evidence it counts as.
COUNT = 4

#: The share of sets of calibration prompts for which a promise is kept as often as it says, or more.
SURE = 0.6
#: At so many errors it is looked up whether less is promised with a smaller one.
GRID = 128

#: (predicted error of the finished latents (rms), PSNR in dB) of one prompt's trial runs.
Curve = Sequence[tuple[float, float]]


class Fidelity:
    """PSNR by predicted error.

    Args:
        curves: one a prompt, at least one, each of one trial run or more.
        of_others: whether the runs were other models'.
    """

    def __init__(self, curves: Sequence[Curve], of_others: bool = False):
        self.of_others = of_others
        self.curves = [sorted((-20 * math.log10(max(error, 1e-12)), psnr) for error, psnr in c) for c in curves]
        self._known: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.curves)

    def scaled(self, scale: float) -> Fidelity:
        """The same of errors ``scale`` times as large: of a model whose velocities are."""
        curves = [[(scale * 10 ** (-x / 20), psnr) for x, psnr in curve] for curve in self.curves]
        return Fidelity(curves, self.of_others)

    def at(self, error: float, share: float = SHARE) -> tuple[float, float]:
        """(expected PSNR in dB, the PSNR that this share of runs reaches) of finished clips.

        A prompt on the edge of another picture may fall over with a smaller error and not with a larger one.  So no
        more is promised than with any smaller error: the first budget that promises enough would be a lucky one.
        """
        x = -20 * math.log10(max(error, 1e-12))
        mean, promised = (float(found[0]) for found in self._raw(np.array([x]), share))
        at, least = self._least(share)
        if x < at[0]:
            return mean, min(promised, float(least[0]))
        place = int(np.searchsorted(at, x, side="right")) - 1  # the smaller ones begin here, or a little before
        return mean, promised if place == len(at) - 1 else float(least[place])

    def _least(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Errors in -dB, ascending, and the least that is promised with these or any smaller ones."""
        if share not in self._known:
            ends = [curve[k][0] for curve in self.curves for k in (0, -1)]
            at = np.linspace(min(ends), max(ends), GRID)
            self._known[share] = at, np.minimum.accumulate(self._raw(at, share)[1][::-1])[::-1]
        return self._known[share]

    def _raw(self, x: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        """``at`` errors in -dB [n], each by itself: (expected, promised), [n] both."""
        found = np.sort([_read(curve, x) for curve in self.curves], axis=0)
        count, mean = len(found), found.mean(axis=0)
        freedom = COUNT + count - 1
        square = (COUNT * SPREAD**2 + ((found - mean) ** 2).sum(axis=0)) / freedom
        reach = student(share, freedom) * np.sqrt(square * (1 + 1 / count))
        ordered = found[place(count, share) - 1]
        return mean, np.minimum(mean - reach, ordered)


def _read(curve: list[tuple[float, float]], x: np.ndarray) -> np.ndarray:
    """A curve at x: straight between trial runs, beyond them as the error goes (dB for dB)."""
    at, psnr = np.array(curve).T
    return np.interp(x, at, psnr) + np.minimum(x - at[0], 0) + np.maximum(x - at[-1], 0)


@functools.lru_cache(maxsize=64)
def place(count: int, share: float = SHARE) -> int:
    """The k of order: of ``count`` prompts the k-th lowest is reached by this share of runs, or more, in the long run,
    for ``SURE`` of all sets of prompts: the probability that k of them or more lie below that share's quantile."""
    below = [math.comb(count, k) * (1 - share) ** k * share ** (count - k) for k in range(count + 1)]
    return next((k for k in range(count, 1, -1) if math.fsum(below[k:]) >= SURE), 1)


def at(curve: Curve, error: float) -> float:
    """A curve of any metric at an error: straight over its logarithm between trial runs, beyond them as there."""
    x, values = np.array(sorted((-math.log(max(e, 1e-12)), value) for e, value in curve)).T
    return float(np.interp(-math.log(max(error, 1e-12)), x, values))


def student(share: float, freedom: int) -> float:
    """The quantile of Student's distribution by the Cornish-Fisher expansion in 1 / freedom.

    To three terms: within 1 % from four degrees of freedom on for shares up to 0.95.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**k for k, term in enumerate(terms, 1))
