"""block_store(x): a copy into a preallocated buffer."""

from __future__ import annotations

import torch

from ._check import output
from ._dispatch import run


def block_store(x: torch.Tensor, out: torch.Tensor | None = None, *, impl: str | None = None) -> torch.Tensor:
    """Copies [B, ...] of any strides into ``out``.

    Args:
        out: where to write, of x's dtype; allocated if not given.
        impl: one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.

    Raises ``ValueError`` for different shapes, an unknown ``impl``, or one that was requested and cannot run here.
    """
    out = output("block_store", out, x=x)
    return run("block_store", impl, _plain, (x,), (x,), out)


def _plain(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return out.copy_(x)
