"""Validation shared by the ops' public functions."""

from __future__ import annotations

from typing import NoReturn

import torch


def same_shape(op: str, **tensors: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """The first one.  Raises ``ValueError`` unless all, in lists too, share one shape with a batch dimension."""
    every = [t for value in tensors.values() for t in (value if isinstance(value, list) else (value,))]
    shape = every[0].shape
    if len(shape) < 1 or any(t.shape != shape for t in every):
        _complain(op, tensors)
    return every[0]


def _complain(op: str, tensors: dict[str, torch.Tensor | list[torch.Tensor]]) -> NoReturn:
    """Raises the error; names are formatted only here, as valid tensors are checked at every step."""
    named = []
    for name, value in tensors.items():
        named += [(f"{name}[{k}]", t) for k, t in enumerate(value)] if isinstance(value, list) else [(name, value)]
    first, a = named[0]
    if a.ndim < 1:
        raise ValueError(f"{op}: {first} needs a batch dimension, got a scalar")
    name, b = next((name, t) for name, t in named if t.shape != a.shape)
    raise ValueError(f"{op}: {first} {tuple(a.shape)} and {name} {tuple(b.shape)} differ in shape")


def output(op: str, out: torch.Tensor | None, **tensors: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """``out``, or a new contiguous tensor like the first one; all must share one shape (see :func:`same_shape`)."""
    if out is not None:
        same_shape(op, **tensors, out=out)
        return out
    return torch.empty_like(same_shape(op, **tensors), memory_format=torch.contiguous_format)


def rows(x: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> [B, n] in fp32, the form that every reduction takes."""
    return (x.flatten(1) if x.ndim > 1 else x[:, None]).float()


def length(x: torch.Tensor) -> torch.Tensor:
    """L2 norm of [B, n] rows.  Not ``vector_norm``: on a CPU that adds up in order, ``sum`` in a tree."""
    return x.square().sum(dim=1).sqrt()


def per_sample(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 1, ...] with as many dimensions as ``like``."""
    return vector.view(-1, *[1] * (like.ndim - 1))
