"""The ops without their checks, for the engine: bound once for tensors of one dtype on one device.

Which implementation runs is what ``vaccel.ops`` itself would choose for such tensors; shapes are the caller's promise,
and gradients are never recorded here.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from ._dispatch import DTYPES, ONE_OPERATION
from ._native import LOADED

#: Op -> the file of its plain formula.  Arguments are the kernels': tensors, numbers, then ``out`` for what writes (and
#: what it returns is not to be used: kernels that write return nothing).
NAMES = {
    "norm": "norm",
    "cosine": "cosine",
    "relative_l1": "relative_l1",
    "direction_magnitude": "direction_magnitude",
    "cfg_combine": "cfg_combine",
    "linear_combination": "linear_combination",
    "linear_combination_guided": "linear_combination",
    "accumulate_and_test": "accumulate_and_test",
}


class Inner:
    """One attribute an op of ``NAMES``."""

    def __init__(self, native: bool):
        for name, file in NAMES.items():
            setattr(self, name, _bound(name, file, native and name not in ONE_OPERATION))


def _bound(name: str, file: str, native: bool) -> Callable[..., Any]:
    module = importlib.import_module(f"vaccel.ops.{file}")
    plain = getattr(module, "_plain_guided" if name.endswith("_guided") else "_plain")
    if not native:
        return plain
    kernel = getattr(torch.ops.vaccel, name).default
    return kernel


@functools.lru_cache(maxsize=16)
def _inner(native: bool) -> Inner:
    return Inner(native)


def inner(device: torch.device, dtype: torch.dtype | None) -> Inner:
    """The ops for tensors that all are of ``dtype`` (None where they are not all of one) on ``device``."""
    return _inner(LOADED and device.type == "cpu" and dtype in DTYPES)
