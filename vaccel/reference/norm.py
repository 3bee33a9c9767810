"""norm(x) = sqrt(sum x^2)."""

import torch

from ._rows import rows


def norm(x: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> [B], fp64."""
    return rows(x).square().sum(dim=1).sqrt()
