"""SeaCache (arXiv 2602.18993): skips while the spectrally filtered input changes little; the residual is extrapolated.

The latents x = (1 - s) x_0 + s eps of a step pass the filter that an optimal linear denoiser has for a clean signal of
power |f|^-p along every axis (p = 3 for video),

    g(f) = (1 - s) P / ((1 - s)^2 P + s^2),  P = |f|^-p,    the product over axes, divided by its mean

and the mean |change| of the filtered latents from step to step, relative to the mean |filtered latents|, adds up until
it reaches the threshold, when a step is computed.  The first ``warm`` steps and the last one are computed, and never
more than ``longest`` are skipped in a row.  A skipped step takes the block stack's residual, extrapolated in a straight
line through the last two computed ones (``order`` 1).  All as in diffusers' version of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .loop import Rival
from .taylorseer import taylor


def filtered(x: Tensor, s: float, power: float) -> Tensor:
    """``x`` [1, channels, ...] in flow coordinates, filtered over all axes but the first two."""
    axes = tuple(range(2, x.ndim))
    s = min(max(s, 1e-6), 1 - 1e-6)
    gain = torch.ones(())
    for axis in axes:
        clean = 1 / (torch.fft.fftfreq(x.shape[axis]).abs() ** power + 1e-16)
        along = (1 - s) * clean / ((1 - s) ** 2 * clean + s**2 + 1e-16)
        gain = gain * along.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return torch.fft.ifftn(torch.fft.fftn(x, dim=axes) * (gain / gain.mean()), dim=axes).real


@dataclasses.dataclass
class SeaCache(Rival):
    """``levels`` [T + 1] as a flow; ``shrink`` [T] brings the latents into its coordinates (1 for a flow model)."""

    threshold: float
    warm: int
    longest: int
    levels: Sequence[float]
    shrink: Sequence[float]
    power: float = 3.0
    order: int = 1
    what: str = "residual"

    def __post_init__(self) -> None:
        self.before: Tensor | None = None
        self.summed, self.skipped = 0.0, 0
        self.memory: dict[tuple[int, float], Tensor] | None = None  # of filtered latents that outlive the rival

    def computes(self, step: int, x: Tensor) -> bool:
        now = self._filtered(step, x)
        forced = step < self.warm or step == len(self.levels) - 2 or self.skipped >= self.longest
        if self.before is not None and not forced:
            self.summed += float((now - self.before).abs().mean() / (self.before.abs().mean() + 1e-16))
        computed = forced or self.before is None or self.summed >= self.threshold
        self.before = now
        if computed:
            self.summed, self.skipped = 0.0, 0
        else:
            self.skipped += 1
        return computed

    def _filtered(self, step: int, x: Tensor) -> Tensor:
        key, memory = (id(x), self.power), {} if self.memory is None else self.memory
        if key not in memory:
            memory[key] = filtered(x * self.shrink[step], self.levels[step], self.power)
        return memory[key]

    def weights(self, known: Sequence[int], step: int) -> np.ndarray:
        return taylor(known, step, self.order)
