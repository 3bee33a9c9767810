"""direction_magnitude(x, r, m) = m (x + r) / norm(x + r); guided: both branches and their combination u + w (c - u).

Three launches: the chunks' sums, a row's factors from them, then every element with its row's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import CHUNK, OPTIONS, launch_finish, launch_sums, on_device, row_sum, span


@triton.jit
def direction_magnitude_sums_kernel(x_ptr, residual_ptr, partial_ptr, n, chunks, CHUNK: tl.constexpr):
    row, chunk, at, exists = span(n, CHUNK)
    x = tl.load(x_ptr + at, mask=exists, other=0.0).to(tl.float32)
    direction = x + tl.load(residual_ptr + at, mask=exists, other=0.0).to(tl.float32)
    tl.store(partial_ptr + row * chunks + chunk, tl.sum(direction * direction))


@triton.jit
def factor_to(magnitude, norm):
    """What gives a row of this norm that magnitude; a row of zeros has no direction and stays as it is."""
    return tl.where(norm == 0, 0.0, tl.div_rn(magnitude, norm))


@triton.jit
def direction_magnitude_factor_kernel(partial_ptr, magnitude_ptr, factor_ptr, batch, chunks, PARTIALS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    length = tl.sqrt_rn(row_sum(partial_ptr, row, chunks, PARTIALS))
    tl.store(factor_ptr + row, factor_to(tl.load(magnitude_ptr + row), length))


@triton.jit
def direction_magnitude_kernel(x_ptr, residual_ptr, factor_ptr, out_ptr, n, CHUNK: tl.constexpr):
    row, _, at, exists = span(n, CHUNK)
    x = tl.load(x_ptr + at, mask=exists).to(tl.float32)
    direction = x + tl.load(residual_ptr + at, mask=exists).to(tl.float32)
    tl.store(out_ptr + at, (direction * tl.load(factor_ptr + row)).to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def guided_sums_kernel(x_ptr, cond_ptr, uncond_ptr, partial_ptr, n, chunks, CHUNK: tl.constexpr):
    row, chunk, at, exists = span(n, CHUNK)
    x = tl.load(x_ptr + at, mask=exists, other=0.0).to(tl.float32)
    cond = x + tl.load(cond_ptr + at, mask=exists, other=0.0).to(tl.float32)
    uncond = x + tl.load(uncond_ptr + at, mask=exists, other=0.0).to(tl.float32)
    to = partial_ptr + row * 2 * chunks + chunk
    tl.store(to, tl.sum(cond * cond))
    tl.store(to + chunks, tl.sum(uncond * uncond))


@triton.jit
def guided_factors_kernel(partial_ptr, magnitude_ptr, factor_ptr, batch, chunks, PARTIALS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    magnitude = tl.load(magnitude_ptr + row)
    cond = tl.sqrt_rn(row_sum(partial_ptr, 2 * row, chunks, PARTIALS))
    uncond = tl.sqrt_rn(row_sum(partial_ptr, 2 * row + 1, chunks, PARTIALS))
    tl.store(factor_ptr + row, factor_to(magnitude, cond))
    tl.store(factor_ptr + batch + row, factor_to(magnitude, uncond))


@triton.jit
def guided_kernel(x_ptr, cond_ptr, uncond_ptr, factor_ptr, out_ptr, scale, n, batch, CHUNK: tl.constexpr):
    row, _, at, exists = span(n, CHUNK)
    x = tl.load(x_ptr + at, mask=exists).to(tl.float32)
    cond = (x + tl.load(cond_ptr + at, mask=exists).to(tl.float32)) * tl.load(factor_ptr + row)
    uncond = (x + tl.load(uncond_ptr + at, mask=exists).to(tl.float32)) * tl.load(factor_ptr + batch + row)
    tl.store(out_ptr + at, (uncond + scale * (cond - uncond)).to(out_ptr.dtype.element_ty), mask=exists)


def direction_magnitude(x: torch.Tensor, residual: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """x, residual: [B, ...]; magnitude: [B] in fp32; returns [B, ...], contiguous."""
    x, residual = x.contiguous(), residual.contiguous()
    partial, chunks = launch_sums(direction_magnitude_sums_kernel, 1, x, residual)
    factor = launch_finish(direction_magnitude_factor_kernel, 1, partial, chunks, magnitude.contiguous())
    out = torch.empty_like(x)
    if out.numel():
        with on_device(out):
            direction_magnitude_kernel[(chunks, len(x))](
                x, residual, factor, out, out[0].numel(), CHUNK=CHUNK, **OPTIONS
            )
    return out


def direction_magnitude_guided(
    x: torch.Tensor, cond: torch.Tensor, uncond: torch.Tensor, magnitude: torch.Tensor, scale: float
) -> torch.Tensor:
    """cond, uncond: the branches' residuals, [B, ...] like x; returns the guided output, [B, ...], contiguous."""
    x, cond, uncond = x.contiguous(), cond.contiguous(), uncond.contiguous()
    partial, chunks = launch_sums(guided_sums_kernel, 2, x, cond, uncond)
    factors = launch_finish(guided_factors_kernel, 2, partial, chunks, magnitude.contiguous())
    out = torch.empty_like(x)
    if out.numel():
        with on_device(out):
            guided_kernel[(chunks, len(x))](
                x, cond, uncond, factors, out, scale, out[0].numel(), len(x), CHUNK=CHUNK, **OPTIONS
            )
    return out
