"""cfg_delta_store(c, u): d <- u - c."""

from __future__ import annotations

import torch

from ._check import output
from ._dispatch import run


def cfg_delta_store(
    cond: torch.Tensor, uncond: torch.Tensor, out: torch.Tensor | None = None, *, impl: str | None = None
) -> torch.Tensor:
    """The guidance delta (arXiv 2508.12691, CFG caching): d = u - c, [B, ...] twice -> [B, ...].

    Args:
        out: where to write, of cond's dtype; allocated if not given.
        impl: one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.

    Raises ``ValueError`` for different shapes, an unknown ``impl``, or one that was requested and cannot run here.
    """
    out = output("cfg_delta_store", out, cond=cond, uncond=uncond)
    return run("cfg_delta_store", impl, _plain, (cond, uncond), (cond, uncond), out)


def _plain(cond: torch.Tensor, uncond: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.sub(uncond, cond, out=out)
