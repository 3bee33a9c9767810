"""block_reuse(x, r) = x + r."""

import torch


def block_reuse(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """[B, ...], [B, ...] -> [B, ...], fp64."""
    return x.double() + residual.double()
