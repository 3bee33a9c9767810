"""direction_magnitude(x, r, m) = m (x + r) / norm(x + r); guided: both branches and their combination."""

from __future__ import annotations

import torch

from ._check import length, per_sample, rows, same_shape
from ._dispatch import run


def direction_magnitude(
    x: torch.Tensor, residual: torch.Tensor, magnitude: torch.Tensor, *, impl: str | None = None
) -> torch.Tensor:
    """The reused direction with a given norm (OpenReview egUfF6cesw, eq. 3): m (x + r) / norm(x + r).

    Where x + r is zero there is no direction to give a norm to, and the result is zero, whatever the magnitude.

    Args:
        x, residual: [B, ...], one dtype; accumulated in fp32.
        magnitude: [B], fp32, the norm of every sample's result.
        impl: one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.

    Returns [B, ...] in x's dtype.  Raises ``ValueError`` for shapes that do not fit, an unknown ``impl``, or one that
    was requested and cannot run here.
    """
    same_shape("direction_magnitude", x=x, residual=residual)
    fits = _fits("direction_magnitude", magnitude, x)
    return run("direction_magnitude", impl, _plain, (x, residual), (x, residual, magnitude), fits=fits)


def direction_magnitude_guided(
    x: torch.Tensor,
    cond: torch.Tensor,
    uncond: torch.Tensor,
    magnitude: torch.Tensor,
    scale: float,
    *,
    impl: str | None = None,
) -> torch.Tensor:
    """Both branches' reused directions with one norm, then guidance: u + w (c - u) (OpenReview egUfF6cesw, eq. 2 to 4).

    Args:
        x: [B, ...], the input of both branches.
        cond, uncond: the branches' residuals, like x.
        magnitude: [B], fp32.
        scale: the guidance scale w.
        impl: one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.

    Returns [B, ...] in x's dtype.  Raises as ``direction_magnitude`` does.
    """
    same_shape("direction_magnitude_guided", x=x, cond=cond, uncond=uncond)
    fits = _fits("direction_magnitude_guided", magnitude, x)
    args = (x, cond, uncond, magnitude, float(scale))
    return run("direction_magnitude_guided", impl, _plain_guided, (x, cond, uncond), args, fits=fits)


def _fits(op: str, magnitude: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a kernel can take the magnitudes.  Raises ``ValueError`` where there is not one for each sample of x."""
    if magnitude.shape != x.shape[:1]:
        raise ValueError(f"{op}: magnitude must be [{x.shape[0]}], got {tuple(magnitude.shape)}")
    gradients = magnitude.requires_grad and torch.is_grad_enabled()
    return magnitude.device == x.device and magnitude.dtype == torch.float32 and not gradients


def _scaled(x: torch.Tensor, residual: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    direction = x.float() + residual.float()
    norm = length(rows(direction))
    return direction * per_sample(torch.where(norm == 0, norm, magnitude / norm), direction)


def _plain(x: torch.Tensor, residual: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    return _scaled(x, residual, magnitude).to(x.dtype)


def _plain_guided(
    x: torch.Tensor, cond: torch.Tensor, uncond: torch.Tensor, magnitude: torch.Tensor, scale: float
) -> torch.Tensor:
    c, u = _scaled(x, cond, magnitude), _scaled(x, uncond, magnitude)
    return (u + scale * (c - u)).to(x.dtype)
