"""relative_l1(a, b) = sum |a - b| / sum |b|."""

import torch

from ._check import rows, same_shape


def relative_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Per-sample relative L1 distance of ``a`` from ``b``: [B, ...] twice -> [B] in fp32.

    Raises ``ValueError`` for different shapes.
    """
    same_shape("relative_l1", a=a, b=b)
    a, b = rows(a), rows(b)
    return (a - b).abs().sum(dim=1) / b.abs().sum(dim=1)
