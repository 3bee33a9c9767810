"""norm(x) = sqrt(sum x^2)."""

import torch


def norm(x: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> [B], fp64."""
    return x.double().flatten(1).square().sum(dim=1).sqrt()
