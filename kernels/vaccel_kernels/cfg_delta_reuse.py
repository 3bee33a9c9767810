"""cfg_delta_reuse(c, d, w) = c + (1 - w) d."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import launch_map, span


@triton.jit
def cfg_delta_reuse_kernel(cond_ptr, delta_ptr, out_ptr, rest, n, CHUNK: tl.constexpr):
    _, _, at, exists = span(n, CHUNK)
    cond = tl.load(cond_ptr + at, mask=exists).to(tl.float32)
    delta = tl.load(delta_ptr + at, mask=exists).to(tl.float32)
    tl.store(out_ptr + at, (cond + rest * delta).to(out_ptr.dtype.element_ty), mask=exists)


def cfg_delta_reuse(cond: torch.Tensor, delta: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """Into ``out``, contiguous; all of one shape and dtype."""
    launch_map(cfg_delta_reuse_kernel, out, (cond, delta), 1 - scale)
