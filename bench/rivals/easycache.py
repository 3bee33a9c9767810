"""EasyCache (arXiv 2507.02860): the output less the input, again, until the change foreseen adds up to a threshold.

x enters a step, v is its conditional output, |a| the mean of absolute values.  At computed steps the rate
k = |v - v_j| / |x - x_j| is renewed; a step after the first ``warm`` ones adds k |x - x_previous| / |v_*| to E, and is
skipped while E < threshold; the last step is computed.  ``points``: j and * are the last computed step (the release)
or the step before, with its stand-in where it was skipped (the paper's formula).  ``tests/oracle_easycache.py`` has
the same rule as a function of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .loop import Rival


def size(a: Tensor) -> float:
    return float(a.double().abs().mean())


@dataclasses.dataclass
class EasyCache(Rival):
    threshold: float
    warm: int
    steps: int
    points: str = "computed"
    what: str = "difference"

    def __post_init__(self) -> None:
        self.rate, self.error = None, 0.0
        self.entered: Tensor | None = None
        self.computed: tuple[Tensor, Tensor] | None = None
        self.previous: tuple[Tensor, Tensor] | None = None

    def computes(self, step: int, x: Tensor) -> bool:
        skips = False
        if self.rate is not None and self.warm <= step < self.steps - 1:
            base = self.computed if self.points == "computed" else self.previous
            self.error += self.rate * size(x - self.entered) / size(base[1])
            skips = self.error < self.threshold
        self.entered = x
        return not skips

    def observe(self, step: int, x: Tensor, output: Tensor, computed: bool) -> None:
        if computed:
            base = self.computed if self.points == "computed" else self.previous
            if base is not None:
                self.rate = size(output - base[1]) / size(x - base[0])
            self.error, self.computed = 0.0, (x, output)
        self.previous = (x, output)

    def weights(self, known: Sequence[int], step: int) -> np.ndarray:
        return np.eye(len(known))[-1]
