"""norm(x) = sqrt(sum x^2)."""

import torch

from ._check import same_shape


def norm(x: torch.Tensor) -> torch.Tensor:
    """Per-sample L2 norm: [B, ...] -> [B] in fp32.  Raises ``ValueError`` for a scalar."""
    same_shape("norm", x=x)
    return torch.linalg.vector_norm(x.flatten(1) if x.ndim > 1 else x[:, None], dim=1, dtype=torch.float32)
