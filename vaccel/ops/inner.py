"""The ops without their checks, for the engine: bound once for tensors of one dtype on one device.

Which implementation runs is what was certified on the device (``vaccel.ops.certified``); where nothing was, what
``vaccel.ops`` itself would choose.  Shapes are the caller's promise, and gradients are never recorded here.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import _dispatch, certified
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
    """One attribute an op of ``NAMES``.

    Args:
        chosen: op -> [(up to so many elements, implementation)], ascending.
    """

    def __init__(self, chosen: Mapping[str, Sequence[tuple[float, str]]]):
        for name in NAMES:
            setattr(self, name, _by_size(name, chosen.get(name, [(math.inf, "torch")])))


def bound(name: str, impl: str) -> Callable[..., Any]:
    """An op's implementation "torch", "cpp", "cuda" or "triton", as it is."""
    if impl == "triton":
        return functools.partial(_dispatch.launched, name)
    if impl != "torch":
        return getattr(torch.ops.vaccel, name).default
    module = importlib.import_module(f"vaccel.ops.{NAMES[name]}")
    return getattr(module, "_plain_guided" if name.endswith("_guided") else "_plain")


def _by_size(name: str, limits: Sequence[tuple[float, str]]) -> Callable[..., Any]:
    """The op by the implementation for its first tensor's number of elements."""
    functions = [(limit, bound(name, impl)) for limit, impl in limits]
    if len(functions) == 1:
        return functions[0][1]

    def chosen(first: Any, *others: Any, **options: Any) -> Any:
        elements = (first if isinstance(first, torch.Tensor) else first[0]).numel()
        function = next(function for limit, function in functions if elements <= limit)
        return function(first, *others, **options)

    return chosen


@functools.lru_cache(maxsize=16)
def _inner(native: bool) -> Inner:
    """Where nothing was certified: C++ on a CPU."""
    return Inner({name: [(math.inf, "cpp")] for name in NAMES if native and name not in ONE_OPERATION})


@functools.lru_cache(maxsize=16)
def _certified(table: certified.Table, dtype: torch.dtype) -> Inner:
    return Inner(certified.all_of(NAMES, table, str(dtype).removeprefix("torch.")))


def inner(device: torch.device, dtype: torch.dtype | None) -> Inner:
    """The ops for tensors that all are of ``dtype`` (None where they are not all of one) on ``device``."""
    fits = dtype in DTYPES
    if fits and (found := certified.table(device)) is not None:
        return _certified(found, dtype)
    return _inner(LOADED and device.type == "cpu" and fits and not certified.off())
