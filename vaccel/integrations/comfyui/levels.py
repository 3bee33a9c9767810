"""What a network's answer says about x_0 and the velocity, asked of ComfyUI's ``model_sampling``.

A network is given c x and answers o; ``model_sampling`` makes x_0 = p o + q x of it, and noisy latents are
x = alpha x_0 + sigma eps.  Whatever kind of prediction it is (noise, v, EDM's, a flow's velocity, x_0 itself), these
five numbers follow from its own functions on latents of one element, so no kind has to be known by its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ...planning import flow
from ...planning.flow import Flow, Scales

#: What is rounding and what is not, of numbers near 1.
EXACT = 1e-5


@dataclasses.dataclass(frozen=True)
class Point:
    """What holds at one noise level of a run."""

    alpha: float
    sigma: float
    into: float  # c
    of_output: float  # p
    of_latents: float  # q

    @property
    def level(self) -> float:
        return flow.level(self.alpha, self.sigma)

    @property
    def velocity(self) -> Scales:
        """(a, b) with u = eps - x_0 = a o + b (c x)."""
        share = 1 + self.alpha / self.sigma
        return -share * self.of_output, (1 / self.sigma - share * self.of_latents) / self.into

    @property
    def denoised(self) -> Scales:
        """(a, b) with x_0 = a o + b (c x)."""
        return self.of_output, self.of_latents / self.into


def points(model_sampling: Any, sigmas: Sequence[float]) -> list[Point]:
    """What holds at every one of ``sigmas``, as ComfyUI counts them.

    Raises ``ValueError`` for a model whose x_0 is not linear in its answer, or has nothing of it.
    """
    sigma = torch.tensor(sigmas, dtype=torch.float64)
    one, nothing = (torch.full((len(sigmas), 1, 1, 1), v, dtype=torch.float64) for v in (1.0, 0.0))

    def noised(noise: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        return model_sampling.noise_scaling(sigma, noise.clone(), latents.clone(), False)

    def clean(output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return model_sampling.calculate_denoised(sigma, output.clone(), x.clone())

    made = {
        "alpha": noised(nothing, one), "sigma": noised(one, nothing),
        "into": model_sampling.calculate_input(sigma, one.clone()),
        "of_output": clean(one, nothing), "of_latents": clean(nothing, one),
    }  # fmt: skip
    columns = [(value + nothing).double().flatten().tolist() for value in made.values()]
    found = [Point(*row) for row in zip(*columns, strict=True)]
    for point, seen in zip(found, (clean(2 * one, 3 * one) + nothing).flatten().tolist(), strict=True):
        wanted = 2 * point.of_output + 3 * point.of_latents
        if not abs(seen - wanted) <= EXACT * max(1.0, abs(point.of_output), abs(point.of_latents)):
            raise ValueError("what the model predicts is not linear in its answer")
        if not (point.sigma > 0 and point.alpha > -EXACT and point.into and point.of_output):
            raise ValueError("what the model predicts says nothing of the noise")
    return found


def normaliser(model_sampling: Any, sigma: float) -> tuple[float, float]:
    """(alpha + sigma, level) of latents at one noise level, that of finished ones included."""
    at, one = torch.tensor([sigma], dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    alpha = float(model_sampling.noise_scaling(at, 0 * one, one.clone(), False))
    noise = float(model_sampling.noise_scaling(at, one.clone(), 0 * one, False))
    return alpha + noise, flow.level(alpha, noise)


def flow_of(
    at: Sequence[Point], last: float, *, stochastic: bool, response: tuple[tuple[float, ...], ...] | None = None
) -> Flow:
    """A run's calls as a flow; of a ``stochastic`` sampler, of x_0 in the place of the velocity.

    A sampler that adds noise between steps changes eps, and a velocity that contains the old one stands in for nothing;
    what the model takes the finished picture for goes on.

    Args:
        last: the level of the finished latents.

    Raises ``ValueError`` for levels that rise.
    """
    levels: list[float] = []
    for level in [*(point.level for point in at), last]:
        before = levels[-1] if levels else level
        if level > before + EXACT:
            raise ValueError(f"the sampler goes back up, from noise level {before:.4g} to {level:.4g}")
        levels.append(min(level, before))
    scales = tuple(point.denoised if stochastic else point.velocity for point in at)
    plain = all(abs(a - 1) <= EXACT and abs(b) <= EXACT for a, b in scales)
    return Flow(tuple(levels), None if plain else scales, response)
