"""relative_l1(a, b) = sum |a - b| / sum |b|."""

from __future__ import annotations

import torch

from ._check import rows, same_shape
from ._native import compiled


def relative_l1(a: torch.Tensor, b: torch.Tensor, *, impl: str | None = None) -> torch.Tensor:
    """Per-sample relative L1 distance of ``a`` from ``b``: [B, ...] twice -> [B] in fp32.

    ``impl`` is "cpp" or "torch"; by default the compiled kernel on a CPU.  Raises ``ValueError`` for different shapes,
    an unknown ``impl``, or one that was asked for and cannot run here.
    """
    same_shape("relative_l1", a=a, b=b)
    if compiled("relative_l1", impl, a, b):
        return torch.ops.vaccel.relative_l1(a, b)
    a, b = rows(a), rows(b)
    return (a - b).abs().sum(dim=1) / b.abs().sum(dim=1)
