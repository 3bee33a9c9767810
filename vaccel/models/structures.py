"""Answers as trees of tensors: taken apart into tensors and a structure, and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_LEAF = object()
#: The structure of ``(tensor,)``, what most denoisers give with ``return_dict=False``.
SINGLE = (tuple, (_LEAF,))


def flattened(answer: Any, leaves: list[torch.Tensor]) -> Any:
    """An answer's structure; its tensors are appended to ``leaves``."""
    if isinstance(answer, torch.Tensor):
        leaves.append(answer)
        return _LEAF
    if type(answer) is tuple and len(answer) == 1 and isinstance(answer[0], torch.Tensor):
        leaves.append(answer[0])
        return SINGLE
    if isinstance(answer, Mapping):
        return type(answer), {name: flattened(value, leaves) for name, value in answer.items()}
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        fields = {f.name: getattr(answer, f.name) for f in dataclasses.fields(answer)}
        return type(answer), {name: flattened(value, leaves) for name, value in fields.items()}
    if isinstance(answer, (tuple, list)):
        return type(answer), tuple(flattened(value, leaves) for value in answer)
    return _Constant(answer)


@dataclasses.dataclass(frozen=True)
class _Constant:
    value: Any


def rebuilt(tree: Any, leaves: Iterator[torch.Tensor]) -> Any:
    if tree is _LEAF:
        return next(leaves)
    if isinstance(tree, _Constant):
        return tree.value
    kind, inner = tree
    if isinstance(inner, dict):
        made = {name: rebuilt(value, leaves) for name, value in inner.items()}
        return kind(**made) if dataclasses.is_dataclass(kind) else kind(made)
    values = [rebuilt(value, leaves) for value in inner]
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


def tensors_of(answer: Any) -> list[torch.Tensor]:
    """The tensors of an answer, in order."""
    leaves: list[torch.Tensor] = []
    flattened(answer, leaves)
    return leaves
