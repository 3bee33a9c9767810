"""cosine(a, b) = <a, b> / (norm(a) norm(b))."""

from __future__ import annotations

import torch

from ._check import length, rows, same_shape
from ._dispatch import run


def cosine(a: torch.Tensor, b: torch.Tensor, *, impl: str | None = None) -> torch.Tensor:
    """Per-sample cosine similarity: [B, ...] twice -> [B] in fp32.

    The result is NaN for a zero tensor, which has no direction.
    ``impl`` is one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.
    Raises ``ValueError`` for different shapes, an unknown ``impl``, or one that was requested and cannot run here.
    """
    same_shape("cosine", a=a, b=b)
    return run("cosine", impl, _plain, (a, b), (a, b))


def _plain(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = rows(a), rows(b)
    return (a * b).sum(dim=1) / (length(a) * length(b))
