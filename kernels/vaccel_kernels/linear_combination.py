"""linear_combination(x, a) = sum over k of a[k] x[k], a by sample and channel; guided: of both branches, and theirs.

A row is what lies side by side with the same coefficients.  Where rows are long, a program works on one, and its
coefficients are numbers; elsewhere it works on elements of many rows, and each looks up its own.  A table of
coefficients is one tensor's: [sets][channels], a set being all samples or one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import CHUNK, MOST_ROWS, OPTIONS, on_device, span

MOST_TENSORS = 6  # of a branch
LONG_ROW = CHUNK // 2


def chunk_of(branches: int, size: int) -> int:
    """Elements a program works on, so that it spills no registers: fewer of more tensors, and where the number of
    elements is no multiple of sixteen, so that they are not read sixteen bytes at once."""
    return CHUNK if branches == 1 else CHUNK // (2 if size % 16 == 0 else 4)


@triton.jit
def combination(x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, factor_ptr, table, at, exists, COUNT: tl.constexpr):
    """The sum over k < COUNT of ``factor_ptr[k * table]``, a number or an element's own, times x_k."""
    total = tl.load(factor_ptr) * tl.load(x0_ptr + at, mask=exists).to(tl.float32)
    if COUNT > 1:
        total += tl.load(factor_ptr + table) * tl.load(x1_ptr + at, mask=exists).to(tl.float32)
    if COUNT > 2:
        total += tl.load(factor_ptr + 2 * table) * tl.load(x2_ptr + at, mask=exists).to(tl.float32)
    if COUNT > 3:
        total += tl.load(factor_ptr + 3 * table) * tl.load(x3_ptr + at, mask=exists).to(tl.float32)
    if COUNT > 4:
        total += tl.load(factor_ptr + 4 * table) * tl.load(x4_ptr + at, mask=exists).to(tl.float32)
    if COUNT > 5:
        total += tl.load(factor_ptr + 5 * table) * tl.load(x5_ptr + at, mask=exists).to(tl.float32)
    return total


@triton.jit
def pieces(i, start, size, CHUNK: tl.constexpr):
    """How many pieces of ``size``, cut from 0, end from ``start``, in one, to ``start + i``; i is at most CHUNK.

    Only ``start`` is divided in 64 bits: a piece that is longer than a chunk ends in it once or never.
    """
    size = tl.full((), size, tl.int64)
    first = tl.minimum(size - start % size, CHUNK).to(tl.int32)
    return tl.where(i < first, 0, 1 + (i - first) // tl.minimum(size, CHUNK).to(tl.int32))


@triton.jit
def entries(n, of_set, channels, inner, CHUNK: tl.constexpr):
    """This program's elements, which of them exist, and where the coefficients of each are in a table."""
    start = tl.program_id(0).to(tl.int64) * CHUNK
    i = tl.arange(0, CHUNK)
    known = tl.minimum(i, tl.minimum(n - start, CHUNK).to(tl.int32) - 1)  # others look where the last does
    row = start // inner
    rows = pieces(known, start, inner, CHUNK)
    rounds = pieces(rows, row, channels, CHUNK)  # of the channels; whole ones fill a set
    sets = start // of_set + pieces(known, start, of_set, CHUNK)
    return start + i, start + i < n, (sets - rounds) * channels + row % channels + rows


@triton.jit
def row_entry(rows, channels):
    """Where the coefficients of this program's row are in a table, if ``rows`` of them have a set."""
    row = tl.program_id(1).to(tl.int64)
    return row // rows * channels + row % channels


@triton.jit
def combination_rows_kernel(
    x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr,
    factor_ptr, out_ptr, n, rows, channels, table, CHUNK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    _, _, at, exists = span(n, CHUNK)
    factor_ptr += row_entry(rows, channels)
    total = combination(x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, factor_ptr, table, at, exists, COUNT)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def combination_kernel(
    x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr,
    factor_ptr, out_ptr, n, of_set, channels, inner, table, CHUNK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    at, exists, entry = entries(n, of_set, channels, inner, CHUNK)
    factor_ptr += entry
    total = combination(x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, factor_ptr, table, at, exists, COUNT)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def guided_combination_rows_kernel(
    c0_ptr, c1_ptr, c2_ptr, c3_ptr, c4_ptr, c5_ptr, u0_ptr, u1_ptr, u2_ptr, u3_ptr, u4_ptr, u5_ptr,
    factor_ptr, out_ptr, scale, n, rows, channels, table, CHUNK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    _, _, at, exists = span(n, CHUNK)
    factor_ptr += row_entry(rows, channels)
    cond = combination(c0_ptr, c1_ptr, c2_ptr, c3_ptr, c4_ptr, c5_ptr, factor_ptr, table, at, exists, COUNT)
    uncond = combination(u0_ptr, u1_ptr, u2_ptr, u3_ptr, u4_ptr, u5_ptr, factor_ptr, table, at, exists, COUNT)
    tl.store(out_ptr + at, (uncond + scale * (cond - uncond)).to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def guided_combination_kernel(
    c0_ptr, c1_ptr, c2_ptr, c3_ptr, c4_ptr, c5_ptr, u0_ptr, u1_ptr, u2_ptr, u3_ptr, u4_ptr, u5_ptr,
    factor_ptr, out_ptr, scale, n, of_set, channels, inner, table, CHUNK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    at, exists, entry = entries(n, of_set, channels, inner, CHUNK)
    factor_ptr += entry
    cond = combination(c0_ptr, c1_ptr, c2_ptr, c3_ptr, c4_ptr, c5_ptr, factor_ptr, table, at, exists, COUNT)
    uncond = combination(u0_ptr, u1_ptr, u2_ptr, u3_ptr, u4_ptr, u5_ptr, factor_ptr, table, at, exists, COUNT)
    tl.store(out_ptr + at, (uncond + scale * (cond - uncond)).to(out_ptr.dtype.element_ty), mask=exists)


def linear_combination(
    tensors: list[torch.Tensor], coefficients: torch.Tensor, out: torch.Tensor, channel_dim: int = 1
) -> None:
    """tensors: [B, ...]; coefficients: [n, B or 1, C or 1] in fp32; into ``out``, contiguous, like the tensors."""
    launch((combination_rows_kernel, combination_kernel), out, (tensors,), coefficients, channel_dim)


def linear_combination_guided(
    cond: list[torch.Tensor],
    uncond: list[torch.Tensor],
    coefficients: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    channel_dim: int = 1,
) -> None:
    """cond, uncond: as many tensors of each branch, like those that ``linear_combination`` takes."""
    kernels = guided_combination_rows_kernel, guided_combination_kernel
    launch(kernels, out, (cond, uncond), coefficients, channel_dim, scale)


def launch(
    kernels: tuple[triton.JITFunction, triton.JITFunction],
    out: torch.Tensor,
    branches: tuple[list[torch.Tensor], ...],
    coefficients: torch.Tensor,
    channel_dim: int,
    *scalars: float,
) -> None:
    """That of the two kernels, for long rows and for others, that fits: ``(*tensors, factors, out, *scalars, ...)``."""
    elements = out.numel()
    if elements == 0:
        return
    count, sets, channels = coefficients.shape
    of_set = elements // sets
    inner = of_set if channels == 1 else out.stride(channel_dim)
    rows = elements // inner
    tensors = []
    for branch in branches:
        dense = [x.contiguous() for x in branch]
        tensors += dense + dense[:1] * (MOST_TENSORS - count)  # what is not read has to be something
    by_row = rows == 1 or (inner >= LONG_ROW and rows <= MOST_ROWS)
    chunk = chunk_of(len(branches), inner if by_row else elements)
    shared = {"CHUNK": chunk, "COUNT": count, **OPTIONS}
    of_rows, of_elements = kernels
    args = (*tensors, coefficients.contiguous(), out, *scalars)
    with on_device(out):
        if by_row:
            of_rows[(triton.cdiv(inner, chunk), rows)](
                *args, inner, of_set // inner, channels, sets * channels, **shared
            )
        else:
            of_elements[(triton.cdiv(elements, chunk),)](
                *args, elements, of_set, channels, inner, sets * channels, **shared
            )
