"""cfg_combine(c, u, w) = u + w (c - u)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import launch_map, span


@triton.jit
def cfg_combine_kernel(cond_ptr, uncond_ptr, out_ptr, scale, n, CHUNK: tl.constexpr):
    _, _, at, exists = span(n, CHUNK)
    cond = tl.load(cond_ptr + at, mask=exists).to(tl.float32)
    uncond = tl.load(uncond_ptr + at, mask=exists).to(tl.float32)
    tl.store(out_ptr + at, (uncond + scale * (cond - uncond)).to(out_ptr.dtype.element_ty), mask=exists)


def cfg_combine(cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """Into ``out``, contiguous; all of one shape and dtype."""
    launch_map(cfg_combine_kernel, out, (cond, uncond), scale)
