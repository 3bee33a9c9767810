"""direction_magnitude(x, r, m) = m (x + r) / norm(x + r)."""

from __future__ import annotations

import torch

from ._check import length, per_sample, rows, same_shape
from ._native import compiled


def direction_magnitude(
    x: torch.Tensor, residual: torch.Tensor, magnitude: torch.Tensor, *, impl: str | None = None
) -> torch.Tensor:
    """The reused direction at a given length (seed 000, eq. 3): m (x + r) / norm(x + r).

    Args:
        x, residual: [B, ...], one dtype; accumulated in fp32.
        magnitude: [B], fp32, the length every sample gets.
        impl: "cpp" or "torch"; by default the compiled kernel on a CPU.

    Returns [B, ...] in x's dtype.  Raises ``ValueError`` for shapes that do not fit, an unknown ``impl``, or one that
    was asked for and cannot run here.
    """
    same_shape("direction_magnitude", x=x, residual=residual)
    if magnitude.shape != x.shape[:1]:
        raise ValueError(f"direction_magnitude: magnitude must be [{x.shape[0]}], got {tuple(magnitude.shape)}")
    fits = magnitude.is_cpu and magnitude.dtype == torch.float32 and not magnitude.requires_grad
    if compiled("direction_magnitude", impl, x, residual, also=fits):
        return torch.ops.vaccel.direction_magnitude(x, residual, magnitude)
    direction = x.float() + residual.float()
    scale = magnitude / length(rows(direction))
    return (direction * per_sample(scale, direction)).to(x.dtype)
