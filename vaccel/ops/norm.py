"""norm(x) = sqrt(sum x^2)."""

import torch

from ._check import length, rows, same_shape


def norm(x: torch.Tensor) -> torch.Tensor:
    """Per-sample L2 norm: [B, ...] -> [B] in fp32.  Raises ``ValueError`` for a scalar."""
    same_shape("norm", x=x)
    return length(rows(x))
