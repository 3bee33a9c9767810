"""cfg_delta_reuse(c, d, w) = c + (1 - w) d."""

from __future__ import annotations

import torch

from ._check import output
from ._dispatch import run


def cfg_delta_reuse(
    cond: torch.Tensor, delta: torch.Tensor, scale: float, out: torch.Tensor | None = None, *, impl: str | None = None
) -> torch.Tensor:
    """Guidance from the conditional branch and the cached delta d = u - c (arXiv 2508.12691): c + (1 - w) d, [B, ...].

    Computed in fp32; it is u + w (c - u) with u = c + d.

    Args:
        out: where to write, of cond's dtype; allocated if not given.
        impl: one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.

    Raises ``ValueError`` for different shapes, an unknown ``impl``, or one that was requested and cannot run here.
    """
    out = output("cfg_delta_reuse", out, cond=cond, delta=delta)
    return run("cfg_delta_reuse", impl, _plain, (cond, delta), (cond, delta, float(scale)), out)


def _plain(cond: torch.Tensor, delta: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
    return out.copy_(cond.float() + (1 - scale) * delta.float())
