"""accumulate_and_test(E, c): E <- E + offset + factor c; the flag says whether any sample is past the threshold."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .frame import OPTIONS, on_device


@triton.jit
def accumulate_and_test_kernel(error_ptr, change_ptr, flag_ptr, offset, factor, threshold, batch, BLOCK: tl.constexpr):
    past = tl.zeros((BLOCK,), dtype=tl.int32)
    for begin in range(0, batch, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        error = tl.load(error_ptr + at, mask=at < batch, other=0.0)
        error += offset + factor * tl.load(change_ptr + at, mask=at < batch, other=0.0)
        tl.store(error_ptr + at, error, mask=at < batch)
        within = (error <= threshold) | (at >= batch)  # NaN is not within
        past = tl.where(within, past, 1)
    tl.store(flag_ptr, tl.max(past))


def accumulate_and_test(
    error: torch.Tensor, change: torch.Tensor, offset: float, factor: float, threshold: float, exceeded: torch.Tensor
) -> None:
    """error, change: [B] in fp32, error contiguous; exceeded: one int32."""
    block = min(1024, max(16, triton.next_power_of_2(len(error))))
    with on_device(error):
        accumulate_and_test_kernel[(1,)](
            error, change.contiguous(), exceeded, offset, factor, threshold, len(error), BLOCK=block, **OPTIONS
        )
