"""cosine(a, b) = <a, b> / (norm(a) norm(b))."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import launch_finish, launch_sums, row_sum, span


@triton.jit
def cosine_sums_kernel(a_ptr, b_ptr, partial_ptr, n, chunks, CHUNK: tl.constexpr):
    row, chunk, at, exists = span(n, CHUNK)
    a = tl.load(a_ptr + at, mask=exists, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=exists, other=0.0).to(tl.float32)
    to = partial_ptr + row * 3 * chunks + chunk
    tl.store(to, tl.sum(a * b))
    tl.store(to + chunks, tl.sum(a * a))
    tl.store(to + 2 * chunks, tl.sum(b * b))


@triton.jit
def cosine_kernel(partial_ptr, out_ptr, batch, chunks, PARTIALS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    a = row_sum(partial_ptr, 3 * row, chunks, PARTIALS)
    b = row_sum(partial_ptr, 3 * row + 1, chunks, PARTIALS)
    c = row_sum(partial_ptr, 3 * row + 2, chunks, PARTIALS)
    tl.store(out_ptr + row, tl.div_rn(a, tl.sqrt_rn(b) * tl.sqrt_rn(c)))


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B, ...] twice -> [B] in fp32."""
    return launch_finish(cosine_kernel, 1, *launch_sums(cosine_sums_kernel, 3, a, b))
