"""cosine(a, b) = <a, b> / (norm(a) norm(b))."""

import torch

from ._rows import rows


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B, ...], [B, ...] -> [B], fp64."""
    a, b = rows(a), rows(b)
    return (a * b).sum(dim=1) / (a.square().sum(dim=1).sqrt() * b.square().sum(dim=1).sqrt())
