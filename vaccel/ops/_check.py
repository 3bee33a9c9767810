"""Validation shared by the ops' public functions."""

from __future__ import annotations

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def same_shape(op: str, **tensors: torch.Tensor) -> None:
    """Raises ``ValueError`` unless all tensors share one shape with a batch dimension."""
    (first, a), *others = tensors.items()
    if a.ndim < 1:
        raise ValueError(f"{op}: {first} needs a batch dimension, got a scalar")
    for name, b in others:
        if b.shape != a.shape:
            raise ValueError(f"{op}: {first} {tuple(a.shape)} and {name} {tuple(b.shape)} differ in shape")


def per_sample(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 1, ...] with as many dimensions as ``like``."""
    return vector.view(-1, *[1] * (like.ndim - 1))
