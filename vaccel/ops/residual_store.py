"""residual_store: r <- v - x."""

import torch

from ._check import same_shape


def residual_store(v: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes v - x into ``out`` (seed 000, eq. 1) and returns it; all [B, ...], ``out`` in v's dtype.

    Raises ``ValueError`` for different shapes.
    """
    same_shape("residual_store", v=v, x=x, out=out)
    return torch.sub(v, x, out=out)
