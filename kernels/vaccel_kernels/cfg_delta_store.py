"""cfg_delta_store(c, u): d <- u - c."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import launch_map, span


@triton.jit
def cfg_delta_store_kernel(cond_ptr, uncond_ptr, out_ptr, n, CHUNK: tl.constexpr):
    _, _, at, exists = span(n, CHUNK)
    cond = tl.load(cond_ptr + at, mask=exists).to(tl.float32)
    uncond = tl.load(uncond_ptr + at, mask=exists).to(tl.float32)
    tl.store(out_ptr + at, (uncond - cond).to(out_ptr.dtype.element_ty), mask=exists)


def cfg_delta_store(cond: torch.Tensor, uncond: torch.Tensor, out: torch.Tensor) -> None:
    """Into ``out``, contiguous; all of one shape and dtype."""
    launch_map(cfg_delta_store_kernel, out, (cond, uncond))
