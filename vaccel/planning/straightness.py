"""The prior, corrected by what a run's own computed steps show.

How far velocities deviate from a straight line in the noise level differs between models, and no other model tells.  So
the prior's inner products G (``vaccel.planning.prior``) are mixed with those of straight lines of every direction,

    G_p = (1 - p) G + p L,    L[i, j] = 1 + SLOPE (s_i - 1/2) (s_j - 1/2),    trace L = trace G,

and the computed steps of a run choose the share p among ``SHARES``.  Each shows the error e of the forecast that G_p
would have made for it from the two computed before, whose expected square under G_p is r^2 (both relative to the
velocities' mean square).  The p with the smallest sum of log r^2 + e^2 / r^2 is the likeliest; it is taken where the
evidence is overwhelming.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from .calibration import Calibration
from .gram import ridged

#: How much straight lines turn between the levels 0 and 1, relative to their middle.
SLOPE = 4.0
SHARES = (0.0, 0.5, 0.75, 0.9, 0.97, 0.99)
#: A share of lines is believed where forecasts' squared errors are (1 - p)^DOUBT of the prior's, or less.  On the
#: trained families, which are within a few dB of it, more faith in lines made worse what lies between computed steps.
DOUBT = 0.5
#: What a computed step shows counts so much less at each further one: velocities may be straight at first alone.
FADES = 0.5


@functools.lru_cache(maxsize=64)
def straightened(known: Calibration, share: float) -> Calibration:
    """The calibration, of one group, with so large a share of straight lines; itself for none."""
    if not share:
        return known
    levels = np.array(known.gram.levels[:-1]) - 0.5
    line = 1 + SLOPE * np.outer(levels, levels)
    own = known.gram.products.sum(axis=(0, 1))
    return known.of((1 - share) * own + share * line * np.trace(own) / np.trace(line))


@functools.lru_cache(maxsize=64)
def _candidates(known: Calibration) -> np.ndarray:
    """The products of every share, [shares, T, T]."""
    return np.stack([straightened(known, share).gram.grouped("tensor")[0] for share in SHARES])


@functools.lru_cache(maxsize=1024)
def _forecasts(known: Calibration, steps: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every share: what its forecast of the first of these steps from the others leaves of their velocities
    [shares, n], the square r^2 that it expects of that, and what of its score no run changes."""
    expected = _candidates(known)[:, steps][:, :, steps]
    solved = np.linalg.solve(ridged(expected[:, 1:, 1:]), expected[:, 1:, :1])[..., 0]
    weights = np.concatenate([np.ones((len(SHARES), 1)), -solved], axis=1)
    norm = np.einsum("pi,pij,pj->p", weights, expected, weights) / np.trace(expected, axis1=1, axis2=2)
    norm = np.maximum(norm, 1e-9)
    return weights, norm, np.log(norm) - DOUBT * np.log1p(-np.array(SHARES))


class Straightness:
    """What the computed steps of one run show.

    Args:
        known: the prior at the run's levels.
        order: of so many computed velocities a forecast is made.

    Attributes:
        share: the likeliest share of straight lines so far.
    """

    def __init__(self, known: Calibration, order: int = 2):
        self.known, self.order, self.share = known, order, 0.0
        self.scores = np.zeros(len(SHARES))

    def saw(self, steps: Sequence[int], products: np.ndarray) -> Calibration:
        """The prior after a further computed step.

        Args:
            steps: that one and those computed before it, newest first.
            products: [n, n], the inner products of their velocities, in this order; of the newest, where latents have
                changed their shape and older ones are of another.
        """
        count = min(len(steps), self.order + 1, len(products))
        steps, products = list(steps[:count]), np.asarray(products, float)[:count, :count]
        if count > 1 and np.isfinite(products).all() and np.trace(products) > 0:
            self.scores = FADES * self.scores + self._scores(steps, products)
            self.share = SHARES[int(np.argmin(self.scores))]
        return straightened(self.known, self.share)

    def _scores(self, steps: list[int], products: np.ndarray) -> np.ndarray:
        """What the newest step says of every share; the least is the likeliest."""
        weights, norm, constant = _forecasts(self.known, tuple(steps))
        error = np.einsum("pi,ij,pj->p", weights, products, weights) / np.trace(products)
        return constant + np.maximum(error, 0.0) / norm
