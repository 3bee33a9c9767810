"""norm(x) = sqrt(sum x^2)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import launch_finish, launch_sums, row_sum, span


@triton.jit
def norm_sums_kernel(x_ptr, partial_ptr, n, chunks, CHUNK: tl.constexpr):
    row, chunk, at, exists = span(n, CHUNK)
    x = tl.load(x_ptr + at, mask=exists, other=0.0).to(tl.float32)
    to = partial_ptr + row * chunks + chunk
    tl.store(to, tl.sum(x * x))


@triton.jit
def norm_kernel(partial_ptr, out_ptr, batch, chunks, PARTIALS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    a = row_sum(partial_ptr, row, chunks, PARTIALS)
    tl.store(out_ptr + row, tl.sqrt_rn(a))


def norm(x: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> [B] in fp32."""
    return launch_finish(norm_kernel, 1, *launch_sums(norm_sums_kernel, 1, x))
