"""Validation shared by the ops' public functions."""

from __future__ import annotations

import torch


def same_shape(op: str, **tensors: torch.Tensor) -> None:
    """Raises ``ValueError`` unless all tensors share one shape with a batch dimension."""
    (first, a), *others = tensors.items()
    if a.ndim < 1:
        raise ValueError(f"{op}: {first} needs a batch dimension, got a scalar")
    for name, b in others:
        if b.shape != a.shape:
            raise ValueError(f"{op}: {first} {tuple(a.shape)} and {name} {tuple(b.shape)} differ in shape")


def output(op: str, out: torch.Tensor | None, **tensors: torch.Tensor) -> torch.Tensor:
    """``out``, or a new contiguous tensor like the first one; all must share one shape (see :func:`same_shape`)."""
    if out is not None:
        same_shape(op, **tensors, out=out)
        return out
    same_shape(op, **tensors)
    return torch.empty_like(next(iter(tensors.values())), memory_format=torch.contiguous_format)


def rows(x: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> [B, n] in fp32, what every reduction starts from."""
    return (x.flatten(1) if x.ndim > 1 else x[:, None]).float()


def length(x: torch.Tensor) -> torch.Tensor:
    """L2 norm of [B, n] rows.  Not ``vector_norm``: on a CPU that adds up in order, ``sum`` in a tree."""
    return x.square().sum(dim=1).sqrt()


def per_sample(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 1, ...] with as many dimensions as ``like``."""
    return vector.view(-1, *[1] * (like.ndim - 1))
