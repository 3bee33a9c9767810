"""cfg_delta_store(c, u): d <- u - c."""

import torch


def cfg_delta_store(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    """[B, ...], [B, ...] -> [B, ...], fp64."""
    return uncond.double() - cond.double()
