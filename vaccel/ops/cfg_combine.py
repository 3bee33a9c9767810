"""cfg_combine(c, u, w) = u + w (c - u)."""

from __future__ import annotations

import torch

from ._check import output
from ._dispatch import run


def cfg_combine(
    cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor | None = None, *, impl: str | None = None
) -> torch.Tensor:
    """Classifier-free guidance (OpenReview egUfF6cesw, eq. 2): [B, ...] twice and the guidance scale w -> [B, ...].

    Computed in fp32, in the order of operations diffusers' pipelines use: in fp32 the result is theirs bit for bit.

    Args:
        out: where to write, of cond's dtype; allocated if not given.
        impl: one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.

    Raises ``ValueError`` for different shapes, an unknown ``impl``, or one that was requested and cannot run here.
    """
    out = output("cfg_combine", out, cond=cond, uncond=uncond)
    return run("cfg_combine", impl, _plain, (cond, uncond), (cond, uncond, float(scale)), out)


def _plain(cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
    c, u = cond.float(), uncond.float()
    return out.copy_(u + scale * (c - u))
