"""direction_magnitude(x, r, m) = m (x + r) / norm(x + r)."""

from __future__ import annotations

import torch

from . import _native
from ._check import length, per_sample, rows, same_shape


def _torch(x: torch.Tensor, residual: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    direction = x.float() + residual.float()
    scale = magnitude / length(rows(direction))
    return (direction * per_sample(scale, direction)).to(x.dtype)


if _native.LOADED:

    @torch.library.register_fake("vaccel::direction_magnitude")
    def _fake(x, residual, magnitude):
        return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fits_native(*tensors: torch.Tensor) -> bool:
    return all(t.is_cpu and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)


def direction_magnitude(
    x: torch.Tensor, residual: torch.Tensor, magnitude: torch.Tensor, *, impl: str | None = None
) -> torch.Tensor:
    """The reused direction at a given length (seed 000, eq. 3): m (x + r) / norm(x + r).

    Args:
        x, residual: [B, ...], one dtype; accumulated in fp32.
        magnitude: [B], fp32, the length every sample gets.
        impl: "cpp" or "torch"; by default the compiled kernel for contiguous fp32 on a CPU, torch otherwise.

    Returns [B, ...] in x's dtype.  Raises ``ValueError`` for shapes that do not fit, an unknown ``impl``, or an
    ``impl`` that was asked for and cannot run here.
    """
    same_shape("direction_magnitude", x=x, residual=residual)
    if magnitude.shape != x.shape[:1]:
        raise ValueError(f"direction_magnitude: magnitude must be [{x.shape[0]}], got {tuple(magnitude.shape)}")
    if impl not in (None, "cpp", "torch"):
        raise ValueError(f"direction_magnitude: unknown impl {impl!r}; known: 'cpp', 'torch'")
    able = _native.LOADED and _fits_native(x, residual, magnitude)
    if impl == "cpp" and not able:
        raise ValueError(f"direction_magnitude: impl='cpp' needs contiguous fp32 on a CPU; {_native.DETAIL}")
    if able and impl != "torch":
        return torch.ops.vaccel.direction_magnitude(x, residual, magnitude)
    return _torch(x, residual, magnitude)
