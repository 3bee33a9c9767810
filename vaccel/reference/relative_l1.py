"""relative_l1(a, b) = sum |a - b| / sum |b|."""

import torch


def relative_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B, ...], [B, ...] -> [B], fp64."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return (a - b).abs().sum(dim=1) / b.abs().sum(dim=1)
