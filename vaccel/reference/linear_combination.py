"""linear_combination(x, a) = sum over k of a[k] x[k], a by sample and channel; guided: of both branches, and theirs."""

from collections.abc import Sequence

import torch


def linear_combination(
    tensors: Sequence[torch.Tensor], coefficients: torch.Tensor, channel_dim: int = 1
) -> torch.Tensor:
    """n times [B, ...], [n, B or 1, C or 1] -> [B, ...], fp64."""
    result = torch.zeros_like(tensors[0], dtype=torch.float64)
    for x, factor in zip(tensors, coefficients.double(), strict=True):
        shape = [len(factor), *[1] * (x.ndim - 1)]
        if x.ndim > 1:
            shape[channel_dim] = factor.shape[1]
        result = result + factor.reshape(shape) * x.double()
    return result


def linear_combination_guided(
    cond: Sequence[torch.Tensor],
    uncond: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    scale: float,
    channel_dim: int = 1,
) -> torch.Tensor:
    """u + w (c - u) of both branches' combinations: n times [B, ...] twice -> [B, ...], fp64."""
    c, u = (linear_combination(branch, coefficients, channel_dim) for branch in (cond, uncond))
    return u + scale * (c - u)
