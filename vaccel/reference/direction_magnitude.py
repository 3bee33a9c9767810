"""direction_magnitude(x, r, m) = m (x + r) / norm(x + r)."""

import torch

from ._rows import rows


def direction_magnitude(x: torch.Tensor, residual: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """[B, ...], [B, ...], [B] -> [B, ...], fp64; zeros where x + r is zero, which has no direction."""
    direction = x.double() + residual.double()
    length = rows(direction).square().sum(dim=1).sqrt()
    scale = torch.where(length == 0, length, magnitude.double() / length)
    return direction * scale.view(-1, *[1] * (x.ndim - 1))


def direction_magnitude_guided(
    x: torch.Tensor, cond: torch.Tensor, uncond: torch.Tensor, magnitude: torch.Tensor, scale: float
) -> torch.Tensor:
    """u + w (c - u) of both branches' directions at the magnitude: [B, ...] three times, [B], w -> [B, ...], fp64."""
    c, u = direction_magnitude(x, cond, magnitude), direction_magnitude(x, uncond, magnitude)
    return u + scale * (c - u)
