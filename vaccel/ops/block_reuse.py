"""block_reuse(x, r) = x + r."""

from __future__ import annotations

import torch

from ._check import output
from ._dispatch import run


def block_reuse(
    x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor | None = None, *, impl: str | None = None
) -> torch.Tensor:
    """Adds the cached residual of a block stack: x + r, [B, ...] twice -> [B, ...].

    Args:
        out: where to write, of x's dtype; allocated if not given.
        impl: one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.

    Raises ``ValueError`` for different shapes, an unknown ``impl``, or one that was requested and cannot run here.
    """
    out = output("block_reuse", out, x=x, residual=residual)
    return run("block_reuse", impl, _plain, (x, residual), (x, residual), out)


def _plain(x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.add(x, residual, out=out)
