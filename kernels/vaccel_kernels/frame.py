"""What the Triton kernels share: [B, ...] as rows of n elements, cut into chunks; sums of a row from its chunks'.

Chunks have one size whatever the device, and their sums are added in one order: a result is the same every time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl

CHUNK = 4096  # elements a program works on
MOST_ROWS = 65535  # programs in a grid's second dimension
PARTIALS = 1024  # chunks' sums added at a time
#: Each operation rounded on its own, as eager torch and the compiled kernels do.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def span(n, CHUNK: tl.constexpr):
    """This program's row, its chunk, the elements' offsets from the start of the tensor, and which of them exist."""
    row, chunk = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    return row, chunk, row * n + at, at < n


@triton.jit
def row_sum(partial_ptr, which, chunks, PARTIALS: tl.constexpr):
    """The sum of the ``which``-th list of ``chunks`` partial sums."""
    total = tl.zeros((PARTIALS,), dtype=tl.float32)
    for begin in range(0, chunks, PARTIALS):
        at = begin + tl.arange(0, PARTIALS)
        total += tl.load(partial_ptr + which * chunks + at, mask=at < chunks, other=0.0)
    return tl.sum(total)


def launch_map(
    kernel: triton.JITFunction, out: torch.Tensor, inputs: tuple[torch.Tensor, ...], *scalars: float
) -> None:
    """``kernel(*inputs, out, *scalars, n)``: every element into ``out``, contiguous, of the inputs' shape and dtype."""
    if n := out.numel():
        inputs = tuple(x.contiguous() for x in inputs)
        with on_device(out):
            kernel[(triton.cdiv(n, CHUNK),)](*inputs, out, *scalars, n, CHUNK=CHUNK, **OPTIONS)


def launch_sums(kernel: triton.JITFunction, sums: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, int]:
    """``kernel(*tensors, partial, n, chunks)``: the chunks' sums, [B, sums, chunks] in fp32; and how many chunks."""
    tensors = tuple(x.contiguous() for x in tensors)
    batch = len(tensors[0])
    n = tensors[0][0].numel() if batch else 0
    chunks = triton.cdiv(n, CHUNK)
    partial = tensors[0].new_empty((batch, sums, chunks), dtype=torch.float32)
    if batch > MOST_ROWS:
        raise ValueError(f"a Triton kernel takes at most {MOST_ROWS} samples, got {batch}")
    if batch * n:
        with on_device(partial):
            kernel[(chunks, batch)](*tensors, partial, n, chunks, CHUNK=CHUNK, **OPTIONS)
    return partial, chunks


def launch_finish(
    kernel: triton.JITFunction, results: int, partial: torch.Tensor, chunks: int, *more: torch.Tensor
) -> torch.Tensor:
    """``kernel(partial, *more, out, batch, chunks)``: one program a row makes its results of its chunks' sums.

    Returns [B] in fp32, or [results, B].
    """
    batch = len(partial)
    out = partial.new_empty((results, batch) if results > 1 else (batch,))
    if batch:
        with on_device(partial):
            kernel[(batch,)](partial, *more, out, batch, chunks, PARTIALS=PARTIALS, **OPTIONS)
    return out


def on_device(tensor: torch.Tensor) -> AbstractContextManager:
    """Triton launches on the current device: the tensor's is made that."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
