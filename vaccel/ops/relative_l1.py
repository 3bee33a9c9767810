"""relative_l1(a, b) = sum |a - b| / sum |b|."""

import torch

from ._check import same_shape


def relative_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Per-sample relative L1 distance of ``a`` from ``b``: [B, ...] twice -> [B] in fp32.

    Raises ``ValueError`` for different shapes.
    """
    same_shape("relative_l1", a=a, b=b)
    a = a.reshape(a.shape[0], -1).float()
    b = b.reshape(b.shape[0], -1).float()
    return torch.linalg.vector_norm(a - b, ord=1, dim=1) / torch.linalg.vector_norm(b, ord=1, dim=1)
