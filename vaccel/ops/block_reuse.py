"""block_reuse(x, r) = x + r."""

from __future__ import annotations

import torch

from ._check import same_shape
from ._dispatch import run


def block_reuse(
    x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor | None = None, *, impl: str | None = None
) -> torch.Tensor:
    """What a stack of blocks adds, added again: x + r, [B, ...] twice -> [B, ...].

    Args:
        out: where to write, of x's dtype; allocated if not given.
        impl: one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.

    Raises ``ValueError`` for different shapes, an unknown ``impl``, or one that was asked for and cannot run here.
    """
    same_shape("block_reuse", x=x, residual=residual)
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    else:
        same_shape("block_reuse", x=x, out=out)
    return run("block_reuse", impl, _plain, (x, residual), (x, residual), out)


def _plain(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.add(x, residual, out=out)
