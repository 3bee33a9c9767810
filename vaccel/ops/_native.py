"""Loads the compiled kernels, once, if they were built, and describes their results to torch.compile."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import __version__
from ..built import FOLDER, left_out


def _packaged() -> tuple[list[Path], str]:
    """(the CUDA library of ``vaccel-cu13``, or why there is none)."""
    try:
        import vaccel_cu13
    except ImportError:
        return [], "vaccel-cu13 is not installed"
    if vaccel_cu13.__version__ != __version__:
        return [], f"vaccel-cu13 is of version {vaccel_cu13.__version__}, and vaccel of {__version__}: install that one"
    return [vaccel_cu13.LIBRARY], ""


def _load(pattern: str, packaged: tuple[list[Path], str] = ([], "")) -> tuple[bool, str]:
    """(loaded, its path or why it is not).  Loading registers the ops under ``torch.ops.vaccel``."""
    found = sorted(FOLDER.glob(pattern)) or packaged[0]
    if not found:
        part = f"vaccel.{pattern.partition('.')[0]}"
        reasons = [left_out(part) or f"not built (no vaccel/{pattern})", packaged[1]]
        return False, "; ".join(filter(None, reasons))
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return False, f"{found[0].name} does not load: {error}"
    return True, str(found[0])


#: The schemas and the CPU kernels; the CUDA kernels where torch sees a GPU.
LOADED, DETAIL = _load("_native.*so")
CUDA_LOADED, CUDA_DETAIL = False, "torch sees no GPU" if LOADED else DETAIL
if LOADED and torch.cuda.is_available():
    CUDA_LOADED, CUDA_DETAIL = _load("_native_cuda.*so", _packaged())


def native() -> bool:
    """Whether the compiled CPU kernels are in use."""
    return LOADED


def _rows(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """A reduction's result for [B, ...]: [B] in fp32."""
    return first.new_empty(first.shape[:1], dtype=torch.float32)


def _like(first: torch.Tensor, *others: object) -> torch.Tensor:
    """A map's result for [B, ...]: the same shape and dtype, contiguous."""
    return torch.empty_like(first, memory_format=torch.contiguous_format)


def _stats(v: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return v.new_empty((2, *v.shape[:1]), dtype=torch.float32)


def nothing(*args: object, **options: object) -> None:
    """The result of an op that writes into its arguments."""


FAKES = {
    "norm": _rows,
    "cosine": _rows,
    "relative_l1": _rows,
    "residual_store_stats": _stats,
    "direction_magnitude": _like,
    "direction_magnitude_guided": _like,
}
#: Ops that write into their arguments and return nothing.
IN_PLACE = (
    "residual_store",
    "cfg_combine",
    "cfg_delta_store",
    "cfg_delta_reuse",
    "linear_combination",
    "linear_combination_guided",
    "block_store",
    "block_reuse",
    "accumulate_and_test",
)

if LOADED:
    for _name, _fake in FAKES.items():
        torch.library.register_fake(f"vaccel::{_name}", _fake)
    for _name in IN_PLACE:
        torch.library.register_fake(f"vaccel::{_name}", nothing)
