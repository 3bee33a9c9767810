"""relative_l1(a, b) = sum |a - b| / sum |b|."""

from __future__ import annotations

import torch

from ._check import rows, same_shape
from ._dispatch import run


def relative_l1(a: torch.Tensor, b: torch.Tensor, *, impl: str | None = None) -> torch.Tensor:
    """Per-sample relative L1 distance of ``a`` from ``b``: [B, ...] twice -> [B] in fp32.

    ``impl`` is one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.
    Raises ``ValueError`` for different shapes, an unknown ``impl``, or one that was requested and cannot run here.
    """
    same_shape("relative_l1", a=a, b=b)
    return run("relative_l1", impl, _plain, (a, b), (a, b))


def _plain(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = rows(a), rows(b)
    return (a - b).abs().sum(dim=1) / b.abs().sum(dim=1)
