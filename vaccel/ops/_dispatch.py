"""Which implementation of an op runs: C++ on a CPU, plain torch elsewhere; CUDA and Triton on request by name.

The kernels for GPUs have run on one kind of GPU, an H100, so none of them is a default yet.  An implementation that is
requested runs or raises; it is never replaced by another one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from .. import reference
from . import certified
from ._native import CUDA_DETAIL, CUDA_LOADED, DETAIL, FAKES, IN_PLACE, LOADED, nothing

IMPLS = ("cpp", "cuda", "triton", "torch", "reference")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TRITON = importlib.util.find_spec("triton") is not None
#: Triton's interpreter runs its kernels on CPU tensors; it has to be asked for before Triton is imported.
INTERPRETED = TRITON and os.environ.get("TRITON_INTERPRET") == "1"
#: A single operation of eager torch each: on a CPU there is nothing to fuse, and torch's call is cheaper than ours.
ONE_OPERATION = frozenset({"residual_store", "cfg_delta_store", "block_store", "block_reuse"})
REDUCTIONS = frozenset({"norm", "cosine", "relative_l1"})


def run(
    op: str,
    impl: str | None,
    plain: Callable[..., Any],
    tensors: tuple[torch.Tensor, ...],
    args: tuple,
    out: torch.Tensor | None = None,
    *,
    fits: bool = True,
    options: dict[str, int] | None = None,
) -> Any:
    """The result of ``op`` by the implementation ``impl``, by default the fastest one that can run.

    Args:
        plain: the formula in torch, called like the kernels: with ``args`` and, if given, ``out``.
        tensors: those of ``args`` that must share dtype and device for a kernel to take them, the main one first.
        out: the tensor that an op writes to and returns; it must be contiguous for a kernel.
        fits: whether a kernel can take the other arguments.
        options: keyword arguments of every implementation, after ``out``.

    Raises ``ValueError`` for an ``impl`` that does not exist, or that was requested and cannot run here.
    """
    written, options = () if out is None else (out,), options or {}
    chosen = _choose(op, impl, tensors + written, fits and (out is None or out.is_contiguous()))
    if chosen in ("cpp", "cuda"):
        result = getattr(torch.ops.vaccel, op)(*args, *written, **options)
    elif chosen == "triton":
        result = _triton(op)(*args, *written, **options)
    elif chosen == "torch":
        result = plain(*args, *written, **options)
    else:  # the fp64 reference, rounded to what the op returns
        result = getattr(reference, op)(*args, **options)
        if out is None:
            return result.to(torch.float32 if op in REDUCTIONS else tensors[0].dtype)
        out.copy_(result)
    return result if out is None else out


def _choose(op: str, impl: str | None, tensors: tuple[torch.Tensor, ...], fits: bool) -> str:
    if impl is None:
        if certified.off():
            return "torch"
        fast = LOADED and op not in ONE_OPERATION and tensors[0].is_cpu and fits and _able(tensors)
        return "cpp" if fast else "torch"
    if impl not in IMPLS:
        raise ValueError(f"{op}: unknown impl {impl!r}; known: {', '.join(map(repr, IMPLS))}")
    able, cuda = fits and _able(tensors), tensors[0].is_cuda
    can = {
        "cpp": LOADED and able and tensors[0].is_cpu,
        "cuda": CUDA_LOADED and able and cuda,
        # Under torch.compile it needs its registration, which needs the schemas.
        "triton": TRITON and able and (cuda or INTERPRETED) and (LOADED or not _traced()),
    }
    if not can.get(impl, True):
        raise ValueError(f"{op}: impl={impl!r} cannot run: {_why_not(impl, tensors[0], able)}")
    return impl


def _able(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Kernels take one floating dtype for all tensors, on one device, and no gradients."""
    dtype, device, gradients = tensors[0].dtype, tensors[0].device, torch.is_grad_enabled()
    for t in tensors:
        if t.dtype != dtype or t.device != device or (gradients and t.requires_grad):
            return False
    return dtype in DTYPES


def _why_not(impl: str, tensor: torch.Tensor, able: bool) -> str:
    if impl == "cpp" and not LOADED:
        return DETAIL
    if impl == "cuda" and not CUDA_LOADED:
        return CUDA_DETAIL
    if impl == "triton" and not TRITON:
        return "triton is not installed"
    if impl == "triton" and able and not LOADED:
        return f"under torch.compile and fake tensors it needs the compiled schemas: {DETAIL}"
    if not able:
        return (
            "it needs one of fp32, fp16, bf16 for all tensors, on one device, no gradients, outputs contiguous, "
            "errors, changes, coefficients and magnitudes in fp32"
        )
    return f"the tensors are on {tensor.device}"


def _triton(op: str) -> Callable[..., Any]:
    """The launcher of an op's Triton kernels; where torch traces, the op registered for them."""
    return getattr(torch.ops.vaccel_triton, op) if _traced() else _launcher(op)


def launched(op: str, *args: Any, **options: Any) -> Any:
    """An op by its Triton kernels."""
    return _triton(op)(*args, **options)


def _traced() -> bool:
    """Whether tensors may have no contents: under torch.compile and torch.export, with fake tensors, under any mode
    that watches operations.  A launcher would read addresses."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


@functools.cache
def _launcher(op: str) -> Callable[..., Any]:
    module = importlib.import_module(f"vaccel_kernels.{op.removesuffix('_stats').removesuffix('_guided')}")
    return getattr(module, op)


def _register_triton() -> torch.library.Library:
    """``vaccel_triton::<op>`` for every op, with the compiled op's schema and fake: opaque to torch.compile."""
    library = torch.library.Library("vaccel_triton", "DEF")
    for op in (*FAKES, *IN_PLACE):
        schema = str(getattr(torch.ops.vaccel, op).default._schema)
        library.define(schema.removeprefix("vaccel::"))
        for key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
            library.impl(op, functools.partial(_launch, op), key)
        torch.library.register_fake(f"vaccel_triton::{op}", FAKES.get(op, nothing), lib=library)
    return library


def _launch(op: str, *args: Any, **options: Any) -> Any:
    return _launcher(op)(*args, **options)


TRITON_OPS = _register_triton() if TRITON and LOADED else None
