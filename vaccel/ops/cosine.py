"""cosine(a, b) = <a, b> / (norm(a) norm(b))."""

import torch

from ._check import length, rows, same_shape


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Per-sample cosine similarity: [B, ...] twice -> [B] in fp32.

    A zero tensor has no direction: the result is NaN, as the formula's.  Raises ``ValueError`` for different shapes.
    """
    same_shape("cosine", a=a, b=b)
    a, b = rows(a), rows(b)
    return (a * b).sum(dim=1) / (length(a) * length(b))
