"""norm(x) = sqrt(sum x^2)."""

from __future__ import annotations

import torch

from ._check import length, rows, same_shape
from ._native import compiled


def norm(x: torch.Tensor, *, impl: str | None = None) -> torch.Tensor:
    """Per-sample L2 norm: [B, ...] -> [B] in fp32.

    ``impl`` is "cpp" or "torch"; by default the compiled kernel on a CPU.  Raises ``ValueError`` for a scalar, an
    unknown ``impl``, or one that was asked for and cannot run here.
    """
    same_shape("norm", x=x)
    return torch.ops.vaccel.norm(x) if compiled("norm", impl, x) else length(rows(x))
