"""residual_store(v, x) = v - x."""

import torch


def residual_store(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[B, ...], [B, ...] -> [B, ...], fp64."""
    return v.double() - x.double()
