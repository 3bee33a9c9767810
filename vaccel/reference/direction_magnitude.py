"""direction_magnitude(x, r, m) = m (x + r) / norm(x + r)."""

import torch


def direction_magnitude(x: torch.Tensor, residual: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """[B, ...], [B, ...], [B] -> [B, ...], fp64."""
    direction = x.double() + residual.double()
    scale = magnitude.double() / direction.flatten(1).square().sum(dim=1).sqrt()
    return direction * scale.view(-1, *[1] * (x.ndim - 1))
