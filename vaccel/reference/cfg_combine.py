"""cfg_combine(c, u, w) = u + w (c - u)."""

import torch


def cfg_combine(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """[B, ...], [B, ...], w -> [B, ...], fp64."""
    cond, uncond = cond.double(), uncond.double()
    return uncond + scale * (cond - uncond)
