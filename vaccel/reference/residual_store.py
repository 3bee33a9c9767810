"""residual_store(v, x) = v - x; with statistics also norm(v) and relative_l1(v, last)."""

import torch

from .norm import norm
from .relative_l1 import relative_l1


def residual_store(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[B, ...], [B, ...] -> [B, ...], fp64."""
    return v.double() - x.double()


def residual_store_stats(v: torch.Tensor, x: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, ...] three times -> v - x [B, ...] and [2, B]: norm(v), relative_l1(v, last); fp64."""
    return residual_store(v, x), torch.stack([norm(v), relative_l1(v, last)])
