"""relative_l1(a, b) = sum |a - b| / sum |b|."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import launch_finish, launch_sums, row_sum, span


@triton.jit
def relative_l1_sums_kernel(a_ptr, b_ptr, partial_ptr, n, chunks, CHUNK: tl.constexpr):
    row, chunk, at, exists = span(n, CHUNK)
    a = tl.load(a_ptr + at, mask=exists, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=exists, other=0.0).to(tl.float32)
    to = partial_ptr + row * 2 * chunks + chunk
    tl.store(to, tl.sum(tl.abs(a - b)))
    tl.store(to + chunks, tl.sum(tl.abs(b)))


@triton.jit
def relative_l1_kernel(partial_ptr, out_ptr, batch, chunks, PARTIALS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    a = row_sum(partial_ptr, 2 * row, chunks, PARTIALS)
    b = row_sum(partial_ptr, 2 * row + 1, chunks, PARTIALS)
    tl.store(out_ptr + row, tl.div_rn(a, b))


def relative_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B, ...] twice -> [B] in fp32."""
    return launch_finish(relative_l1_kernel, 1, *launch_sums(relative_l1_sums_kernel, 2, a, b))
