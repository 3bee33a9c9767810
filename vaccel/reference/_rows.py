"""What every reduction starts from."""

import torch


def rows(x: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> [B, n], fp64."""
    return (x.flatten(1) if x.ndim > 1 else x[:, None]).double()
