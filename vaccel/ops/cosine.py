"""cosine(a, b) = <a, b> / (norm(a) norm(b))."""

import torch

from ._check import same_shape


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Per-sample cosine similarity: [B, ...] twice -> [B] in fp32.

    A zero tensor has no direction: the result is NaN, as the formula's.  Raises ``ValueError`` for different shapes.
    """
    same_shape("cosine", a=a, b=b)
    a = a.reshape(a.shape[0], -1).float()
    b = b.reshape(b.shape[0], -1).float()
    dot = torch.linalg.vecdot(a, b)
    return dot / (torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1))
