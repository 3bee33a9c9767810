"""A sampler's path as a flow: one velocity for models that predict noise, v, x_0 or the velocity itself.

A noisy latent is x = alpha x_0 + sigma eps.  Divided by alpha + sigma it is (1 - s) x_0 + s eps with the level
s = sigma / (alpha + sigma): a straight flow, whose velocity u = eps - x_0 hardly changes along a run.  In these
coordinates one step of DDIM is one step of Euler, x + (s' - s) u, so errors of u add up with the levels' differences
whatever the model predicts.  The predicted noise itself turns away from u towards the end (it contains less and less
of x_0), and v rotates.  Both are further from a straight line than u, so all least squares are solved in u.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

#: (a, b) with u = a prediction + b x.
Scales = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Flow:
    """The levels s of a run and how a step's prediction becomes the velocity u.

    Args:
        levels: [T + 1], descending: that of the latents that enter step i, and at last that of the finished latents.
        scales: (a, b) of every step; None where the model predicts u.
        response: [T + 1][T], the solver's weight of the velocity of step i in the latents that enter step n (at last,
            in the finished ones); None where it was not measured.
    """

    levels: tuple[float, ...]
    scales: tuple[Scales, ...] | None = None
    response: tuple[tuple[float, ...], ...] | None = None

    @property
    def num_steps(self) -> int:
        return len(self.levels) - 1

    @classmethod
    def euler(cls, levels: Sequence[float], scales: Sequence[Scales] | None = None) -> Flow:
        """The flow of a loop x <- x + (s' - s) u, or of DDIM in these coordinates, at ``levels`` [T + 1].

        With it computed steps make up for the errors of the forecasts before them: what a step adds stays.

        Raises ``ValueError`` for fewer than two levels, or levels that do not fall.
        """
        levels = tuple(float(level) for level in levels)
        if len(levels) < 2 or any(not b < a for a, b in itertools.pairwise(levels)):
            raise ValueError(f"an Euler run has two levels or more, each below the one before it: {levels}")
        widths = [b - a for a, b in itertools.pairwise(levels)]
        steps = range(len(widths))
        response = tuple(tuple(widths[i] if i < n else 0.0 for i in steps) for n in range(len(levels)))
        return cls(levels, None if scales is None else tuple(scales), response)

    @classmethod
    def even(cls, num_steps: int) -> Flow:
        """The flow of a loop whose levels are unknown: evenly spaced, with a model that predicts u."""
        return cls(tuple(1 - i / num_steps for i in range(num_steps + 1)))


def level(alpha: float, sigma: float) -> float:
    """s = sigma / (alpha + sigma)."""
    return sigma / (alpha + sigma)


def scales(kind: str, alpha: float, sigma: float) -> Scales:
    """(a, b) with u = eps - x_0 = a prediction + b x, for a prediction of this ``kind``.

    "epsilon": x_0 = (x - sigma eps) / alpha.  "v_prediction": x_0 = alpha x - sigma v, eps = sigma x + alpha v.
    "sample": eps = (x - alpha x_0) / sigma.  Raises ``ValueError`` for another kind, or where u does not follow from
    it.
    """
    if kind == "v_prediction":
        return alpha + sigma, sigma - alpha
    if kind == "epsilon":
        if alpha <= 0:
            raise ValueError("x_0 does not follow from a prediction of the noise where alpha is 0")
        return 1 + sigma / alpha, -1 / alpha
    if kind == "sample":
        if sigma <= 0:
            raise ValueError("the noise does not follow from a prediction of x_0 where sigma is 0")
        return -(1 + alpha / sigma), 1 / sigma
    raise ValueError(f"no velocity for predictions of kind {kind!r}")


def damped(levels: Sequence[float], known: Sequence[int], step: int, damping: float) -> tuple[float, ...]:
    """The weights of v_f1 + damping (s_step - s_f1) / (s_f1 - s_f2) (v_f1 - v_f2), for known = (f1, f2).

    Linear extrapolation in the level from the last two computed velocities; the last one alone where known = (f1,).
    """
    if len(known) < 2 or levels[known[0]] == levels[known[1]]:
        return (1.0,)
    slope = damping * (levels[step] - levels[known[0]]) / (levels[known[0]] - levels[known[1]])
    return 1 + slope, -slope
