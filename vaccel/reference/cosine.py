"""cosine(a, b) = <a, b> / (norm(a) norm(b))."""

import torch


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B, ...], [B, ...] -> [B], fp64."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return (a * b).sum(dim=1) / (a.square().sum(dim=1).sqrt() * b.square().sum(dim=1).sqrt())
