"""accumulate_and_test(E, c): E <- E + offset + factor c, and whether any sample is above the threshold."""

from __future__ import annotations

import torch

from .. import reference
from ._check import same_shape
from ._dispatch import run


def accumulate_and_test(
    error: torch.Tensor,
    change: torch.Tensor,
    threshold: float,
    exceeded: torch.Tensor,
    *,
    offset: float = 0.0,
    factor: float = 1.0,
    impl: str | None = None,
) -> torch.Tensor:
    """Updates the running error of an adaptive method on its device and tests it, without a host synchronisation.

    Args:
        error: [B] in fp32, contiguous, in place: becomes error + offset + factor * change.
        change: [B] in fp32.
        threshold: the largest error that does not exceed it.
        exceeded: [1], int32; becomes 1 if any sample's error is above the threshold or NaN, else 0.
        impl: one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.

    Returns ``exceeded``.  Raises ``ValueError`` for different shapes or dtypes, an unknown ``impl``, or one that was
    requested and cannot run here.
    """
    same_shape("accumulate_and_test", error=error, change=change)
    if exceeded.shape != (1,) or exceeded.dtype != torch.int32:
        raise ValueError(
            f"accumulate_and_test: exceeded must be [1] in int32, got {exceeded.dtype} {tuple(exceeded.shape)}"
        )
    if error.dtype != torch.float32 or change.dtype != torch.float32:
        raise ValueError(f"accumulate_and_test: errors are in fp32, got {error.dtype} and {change.dtype}")
    if impl == "reference":
        truth, past = reference.accumulate_and_test(error, change, offset, factor, threshold)
        error.copy_(truth)
        return exceeded.fill_(past)
    args = (error, change, float(offset), float(factor), float(threshold), exceeded)
    fits = error.is_contiguous() and exceeded.device == error.device
    run("accumulate_and_test", impl, _plain, (error, change), args, fits=fits)
    return exceeded


def _plain(
    error: torch.Tensor, change: torch.Tensor, offset: float, factor: float, threshold: float, exceeded: torch.Tensor
) -> None:
    error.add_(offset + factor * change)
    exceeded.copy_((error <= threshold).all().logical_not().view(1))
