"""residual_store: r <- v - x; with statistics also norm(v) and relative_l1(v, last), in the same pass."""

from __future__ import annotations

import torch

from ._check import same_shape
from ._dispatch import run
from .norm import norm
from .relative_l1 import relative_l1


def residual_store(v: torch.Tensor, x: torch.Tensor, out: torch.Tensor, *, impl: str | None = None) -> torch.Tensor:
    """Writes v - x into ``out`` (OpenReview egUfF6cesw, eq. 1) and returns it; all [B, ...], ``out`` in v's dtype.

    ``impl`` is one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.
    Raises ``ValueError`` for different shapes, an unknown ``impl``, or one that was requested and cannot run here.
    """
    same_shape("residual_store", v=v, x=x, out=out)
    return run("residual_store", impl, _plain, (v, x), (v, x), out)


def residual_store_stats(
    v: torch.Tensor, x: torch.Tensor, last: torch.Tensor, out: torch.Tensor, *, impl: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``residual_store`` that also returns norm(v) and relative_l1(v, last), [B] in fp32 each; ``last`` is like v.

    ``impl`` is one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.
    Raises ``ValueError`` for different shapes, an unknown ``impl``, or one that was requested and cannot run here.
    """
    same_shape("residual_store_stats", v=v, x=x, last=last, out=out)
    if impl == "reference":
        residual_store(v, x, out, impl=impl)
        return norm(v, impl=impl), relative_l1(v, last, impl=impl)
    stats = run(
        "residual_store_stats", impl, _plain_stats, (v, x, last, out), (v, x, last, out), fits=out.is_contiguous()
    )
    return stats[0], stats[1]


def _plain(v: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.sub(v, x, out=out)


def _plain_stats(v: torch.Tensor, x: torch.Tensor, last: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    _plain(v, x, out)
    return torch.stack([norm(v, impl="torch"), relative_l1(v, last, impl="torch")])
