"""A sampler's path as a flow: what makes forecasts of noise, of v and of velocities one and the same thing.

A noisy latent is x = alpha x_0 + sigma eps.  Divided by alpha + sigma it is (1 - s) x_0 + s eps with the level
s = sigma / (alpha + sigma): a straight flow, whose velocity u = eps - x_0 hardly changes along a run.  In these
coordinates one step of DDIM is one step of Euler, x + (s' - s) u, so errors of u add up with the levels' differences
whatever the model predicts.  The predicted noise itself turns away from u towards the end (it contains less and less
of x_0), v rotates: both are further from a straight line than u, and that is why all least squares are made in u.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

#: (of the prediction, of x): u is so much of either.
Scales = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Flow:
    """The levels s of a run and how a step's prediction becomes the velocity u.

    Args:
        levels: [T + 1], from noise to none; of step i first, the last that of the finished latents.
        scales: one a step; None where the model predicts u.
        response: [T + 1][T], by how much the latents that enter step n (last, the finished ones) follow the velocity
            of step i, as the run's own solver weighs them; None where nobody asked it.
    """

    levels: tuple[float, ...]
    scales: tuple[Scales, ...] | None = None
    response: tuple[tuple[float, ...], ...] | None = None

    @property
    def num_steps(self) -> int:
        return len(self.levels) - 1

    @classmethod
    def even(cls, num_steps: int) -> Flow:
        """Of a loop that says nothing of its levels: evenly spaced, velocities predicted."""
        return cls(tuple(1 - i / num_steps for i in range(num_steps + 1)))


def level(alpha: float, sigma: float) -> float:
    """s = sigma / (alpha + sigma)."""
    return sigma / (alpha + sigma)


def scales(kind: str, alpha: float, sigma: float) -> Scales:
    """What u = eps - x_0 is of a prediction of this ``kind`` and of x.

    "epsilon": x_0 = (x - sigma eps) / alpha.  "v_prediction": x_0 = alpha x - sigma v, eps = sigma x + alpha v.
    "sample": eps = (x - alpha x_0) / sigma.  Raises ``ValueError`` for another kind, or where it says nothing of u.
    """
    if kind == "v_prediction":
        return alpha + sigma, sigma - alpha
    if kind == "epsilon":
        if alpha <= 0:
            raise ValueError("a prediction of the noise says nothing of x_0 where there is nothing but noise")
        return 1 + sigma / alpha, -1 / alpha
    if kind == "sample":
        if sigma <= 0:
            raise ValueError("a prediction of x_0 says nothing of the noise where there is none")
        return -(1 + alpha / sigma), 1 / sigma
    raise ValueError(f"no velocity for predictions of kind {kind!r}")


def damped(levels: Sequence[float], known: Sequence[int], step: int, damping: float) -> tuple[float, ...]:
    """The weights of v_f1 + damping (s_step - s_f1) / (s_f1 - s_f2) (v_f1 - v_f2), known = (f1, f2); of v_f1, (f1,).

    A straight line in the level through the last two velocities, trusted by half where nothing is calibrated.
    """
    if len(known) < 2 or levels[known[0]] == levels[known[1]]:
        return (1.0,)
    along = damping * (levels[step] - levels[known[0]]) / (levels[known[0]] - levels[known[1]])
    return 1 + along, -along
