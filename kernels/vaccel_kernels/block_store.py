"""block_store(x): a copy into a preallocated buffer."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import launch_map, span


@triton.jit
def block_store_kernel(x_ptr, out_ptr, n, CHUNK: tl.constexpr):
    _, _, at, exists = span(n, CHUNK)
    x = tl.load(x_ptr + at, mask=exists).to(tl.float32)
    tl.store(out_ptr + at, (x).to(out_ptr.dtype.element_ty), mask=exists)


def block_store(x: torch.Tensor, out: torch.Tensor) -> None:
    """Into ``out``, contiguous, of x's shape and dtype."""
    launch_map(block_store_kernel, out, (x,))
