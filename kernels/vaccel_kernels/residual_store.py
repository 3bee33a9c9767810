"""residual_store(v, x): r <- v - x; with statistics also norm(v) and relative_l1(v, last), in the same pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import launch_finish, launch_map, launch_sums, row_sum, span


@triton.jit
def residual_store_kernel(v_ptr, x_ptr, out_ptr, n, CHUNK: tl.constexpr):
    _, _, at, exists = span(n, CHUNK)
    v = tl.load(v_ptr + at, mask=exists).to(tl.float32)
    x = tl.load(x_ptr + at, mask=exists).to(tl.float32)
    tl.store(out_ptr + at, (v - x).to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def residual_store_sums_kernel(v_ptr, x_ptr, last_ptr, out_ptr, partial_ptr, n, chunks, CHUNK: tl.constexpr):
    row, chunk, at, exists = span(n, CHUNK)
    v = tl.load(v_ptr + at, mask=exists, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=exists, other=0.0).to(tl.float32)
    last = tl.load(last_ptr + at, mask=exists, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (v - x).to(out_ptr.dtype.element_ty), mask=exists)
    to = partial_ptr + row * 3 * chunks + chunk
    tl.store(to, tl.sum(v * v))
    tl.store(to + chunks, tl.sum(tl.abs(v - last)))
    tl.store(to + 2 * chunks, tl.sum(tl.abs(last)))


@triton.jit
def residual_store_stats_kernel(partial_ptr, out_ptr, batch, chunks, PARTIALS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    squares = row_sum(partial_ptr, 3 * row, chunks, PARTIALS)
    distance = row_sum(partial_ptr, 3 * row + 1, chunks, PARTIALS)
    size = row_sum(partial_ptr, 3 * row + 2, chunks, PARTIALS)
    tl.store(out_ptr + row, tl.sqrt_rn(squares))
    tl.store(out_ptr + batch + row, tl.div_rn(distance, size))


def residual_store(v: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    """Into ``out``, contiguous; all of one shape and dtype."""
    launch_map(residual_store_kernel, out, (v, x))


def residual_store_stats(v: torch.Tensor, x: torch.Tensor, last: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The same, and [2, B] in fp32: norm(v), relative_l1(v, last)."""
    partial, chunks = launch_sums(residual_store_sums_kernel, 3, v, x, last, out)
    return launch_finish(residual_store_stats_kernel, 2, partial, chunks)
