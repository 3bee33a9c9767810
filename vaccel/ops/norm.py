"""norm(x) = sqrt(sum x^2)."""

from __future__ import annotations

import torch

from ._check import length, rows, same_shape
from ._dispatch import run


def norm(x: torch.Tensor, *, impl: str | None = None) -> torch.Tensor:
    """Per-sample L2 norm: [B, ...] -> [B] in fp32.

    ``impl`` is one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.
    Raises ``ValueError`` for a scalar, an unknown ``impl``, or one that was requested and cannot run here.
    """
    same_shape("norm", x=x)
    return run("norm", impl, _plain, (x,), (x,))


def _plain(x: torch.Tensor) -> torch.Tensor:
    return length(rows(x))
