"""relative_l1(a, b) = sum |a - b| / sum |b|."""

import torch

from ._rows import rows


def relative_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B, ...], [B, ...] -> [B], fp64."""
    a, b = rows(a), rows(b)
    return (a - b).abs().sum(dim=1) / b.abs().sum(dim=1)
