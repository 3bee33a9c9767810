"""cfg_delta_reuse(c, d, w) = c + (1 - w) d."""

import torch


def cfg_delta_reuse(cond: torch.Tensor, delta: torch.Tensor, scale: float) -> torch.Tensor:
    """[B, ...], [B, ...], w -> [B, ...], fp64."""
    return cond.double() + (1 - scale) * delta.double()
