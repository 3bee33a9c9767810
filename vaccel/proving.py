"""Measures kernels for ``vaccel.certify``, in a process of its own: ``python -m vaccel.proving``.

A *cell* is an op, an implementation, a dtype and a size: a number of elements, or a shape such as "1x16x21x60x104".
Whether the kernel is right is asked at that size, of rows of odd length, of tensors that start past a boundary, and of
channels that lie last; its time is that of the size alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import capture

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHANNELS = 16
#: Elements, rounds of five operations and replays of the chain that is captured.
CHAIN, ROUNDS, REPLAYS = 2**16, 9, 3
GRAPHS = "graphs"  # the cell of captured steps
#: Of fewer elements a compiled formula is not measured: there the launch is what counts.
COMPILED_FROM = 2**20


def main() -> None:
    """Measures the cells that standard input has, a line of JSON before and after each."""
    parser = argparse.ArgumentParser(description="Measures kernels for vaccel.certify.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="time torch.compile of the formulas too")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.manual_seed(0)
    for cell in json.loads(sys.stdin.read()):
        print(json.dumps({"begin": cell}), flush=True)
        row = graphs_measured(device, *cell[1:]) if cell[0] == GRAPHS else measured(device, *cell, given.compiled)
        print(json.dumps({"row": row, "cell": cell}), flush=True)


def measured(device: torch.device, op: str, impl: str, dtype: str, size: str, compiled: bool = False) -> dict[str, Any]:
    """A row of the table: one kernel, right or not, and its time beside torch's.

    ``passed`` is None where there is no memory to tell.
    """
    plain, kernel = _plain(op), _kernel(op, impl)
    shape = shape_of(size)
    row = {"op": op, "impl": impl, "dtype": dtype, "elements": math.prod(shape), "us": 0.0, "torch_us": 0.0}
    if "x" in size:
        row["shape"] = list(shape)
    try:
        worst = 0.0
        for how, arguments, made in _ways(op, shape, DTYPES[dtype], device):
            found, allowed, plainly = _errors(op, plain, kernel, arguments, made)
            worst = max(worst, found)
            if not found <= allowed:
                why = f"off by {found:.3g}, torch by {plainly:.3g}, at {size} elements in {dtype}{how}"
                return {**row, "passed": False, "why": why, "error": found}
        arguments, _ = _arguments(op, shape, DTYPES[dtype], device)
        row["us"], row["torch_us"] = (_microseconds(lambda f=f: f(*arguments), device) for f in (kernel, plain))
        if compiled and row["elements"] >= COMPILED_FROM:
            row["compiled_us"] = _compiled_us(plain, arguments, device)
    except torch.OutOfMemoryError:
        return {**row, "us": 0.0, "torch_us": 0.0, "passed": None, "why": f"no memory for {size} elements in {dtype}"}
    except Exception as error:  # a kernel may refuse in many ways
        return {**row, "passed": False, "why": f"it failed: {str(error)[:200]}"}
    return {**row, "passed": True, "why": "", "error": worst}


def shape_of(size: str) -> tuple[int, ...]:
    """Of "1x16x21x60x104", or of a number of elements in ``CHANNELS`` channels.  Raises ``ValueError`` for others."""
    try:
        parts = tuple(int(part) for part in size.split("x"))
    except ValueError:
        raise ValueError(f"{size!r} is no shape such as 1x16x21x60x104") from None
    if len(parts) == 1:
        return (1, CHANNELS, max(parts[0] // CHANNELS, 1))
    if min(parts) < 1 or len(parts) < 3:
        raise ValueError(f"a shape has a batch, channels and at least one more dimension, all positive; got {size!r}")
    return parts


def _ways(
    op: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, list[Any], _Made]]:
    """(how, arguments, what it leaves) of all that a kernel must be right for."""
    yield "", *_arguments(op, shape, dtype, device)
    if op == "accumulate_and_test":
        return
    rest = max(math.prod(shape[2:]) // 64, 1)  # a kernel's cases repeat: a small tensor has them all
    yield " in rows of odd length", *_arguments(op, (3, shape[1] + 1, rest | 1), dtype, device)
    yield " past a boundary", *_arguments(op, (2, shape[1], rest), dtype, device, past=1)
    if op.startswith("linear_combination"):
        yield " with channels last", *_arguments(op, (2, rest, 8 * shape[1]), dtype, device, channel_dim=2)


def _errors(op: str, plain: Callable[..., Any], kernel: Callable[..., Any], arguments: list[Any], made: _Made) -> tuple:
    """(the kernel's error, what is allowed, the plain formula's), as the ops' tests have it: at most twice the plain
    formula's own, or four roundings."""
    truth = _truth(op, arguments, made)
    plainly, found = (_off(made(function, arguments), truth) for function in (plain, kernel))
    scale = 1.0 if op == "cosine" else max(float(t.abs().max()) for t in truth)  # whose terms are of that size
    return found, max(2 * plainly, 2 * torch.finfo(made.dtype).eps * scale), plainly


def _compiled_us(plain: Callable[..., Any], arguments: list[Any], device: torch.device) -> float | None:
    """Microseconds of the formula as torch.compile makes it; None where it makes nothing of it."""
    try:
        torch._dynamo.reset()
        compiled = torch.compile(plain, dynamic=False)
        return _microseconds(lambda: compiled(*arguments), device)
    except Exception:  # a compiler may be missing, or refuse in many ways
        return None


def graphs_measured(device: torch.device, op: str, impl: str, elements: str) -> dict[str, Any]:
    """Whether a captured chain gives the bits of an eager one for new inputs, and microseconds an operation of both."""
    row = {"op": op, "impl": impl, "elements": int(elements)}
    arguments, made = _arguments(op, shape_of(elements), torch.float32, device)
    given, kernel = arguments[0], _kernel(op, impl)

    def chain(x: torch.Tensor) -> list[torch.Tensor]:
        y = x
        for _ in range(ROUNDS):
            y = torch.tanh(y * 1.5 + x)
            y = y - y.mean(-1, keepdim=True)
        # Whole numbers, so that no order of summation gives another product.
        whole = torch.round(4 * y)
        return [y, whole @ whole.transpose(-1, -2), *made(kernel, [y, *arguments[1:]])]

    try:
        with capture.on(device if device.index is not None else None):
            chain(given)
            backend = graph_backend()
            replay, outputs = backend.capture(lambda: chain(given))
            wrong = 0
            for _ in range(REPLAYS):
                given.copy_(torch.randn_like(given))
                replay()
                wrong += not all(torch.equal(a, b) for a, b in zip(outputs, chain(given), strict=True))
            if wrong:
                return {**row, **unproven(f"{wrong} of {REPLAYS} replays differ from eager torch")}
            launch_us, replay_us = (_microseconds(f, device) for f in (lambda: chain(given), replay))
    except Exception as error:  # a capture may be refused in many ways
        return {**row, **unproven(f"it failed: {str(error)[:200]}")}
    operations = 5 * ROUNDS + 5
    return {**row, "passed": True, "why": "", "operations": operations,
            "launch_us": round(launch_us / operations, 3), "replay_us": round(replay_us / operations, 3)}  # fmt: skip


def unproven(why: str) -> dict[str, Any]:
    return {"passed": False, "why": why, "launch_us": 0.0, "replay_us": 0.0}


def graph_backend() -> capture.Backend:
    """What captures in the measuring process: the same as in a run."""
    return capture.CudaBackend()


class _Made:
    """What an op leaves: its results, or what it has written into the last argument."""

    def __init__(self, dtype: torch.dtype, written: tuple[int, ...] = ()):
        self.dtype, self.written = dtype, written

    def __call__(self, function: Callable[..., Any], arguments: list[Any]) -> list[torch.Tensor]:
        copies = [_copied(a) if i in self.written else a for i, a in enumerate(arguments)]
        result = function(*copies)
        return [copies[i] for i in self.written] if self.written else [result]


def _copied(t: torch.Tensor) -> torch.Tensor:
    """A copy that stands as far past a boundary."""
    flat = t.new_empty(t.numel() + t.storage_offset())[t.storage_offset() :]
    return flat.copy_(t.flatten()).view(t.shape)


def _arguments(
    op: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, channel_dim: int = 1, past: int = 0
) -> tuple[list[Any], _Made]:
    """Drawn arguments, their tensors ``past`` elements behind where memory begins."""

    def placed(values: torch.Tensor) -> torch.Tensor:
        flat = values.new_empty(values.numel() + past)[past:]
        return flat.copy_(values.flatten()).view(values.shape) if past else values

    def drawn() -> torch.Tensor:
        return placed(torch.randn(shape, device=device).to(dtype))

    batch, fp32 = shape[0], torch.float32
    magnitude = torch.full((batch,), 2.5, device=device)
    weights = torch.randn(3, 1, shape[channel_dim], device=device)

    def out() -> torch.Tensor:
        return placed(torch.full(shape, float("nan"), device=device, dtype=dtype))

    if op == "norm":
        return [drawn()], _Made(fp32)
    if op in ("cosine", "relative_l1"):
        return [drawn(), drawn()], _Made(fp32)
    if op == "direction_magnitude":
        return [drawn(), drawn(), magnitude], _Made(dtype)
    if op == "cfg_combine":
        return [drawn(), drawn(), 4.0, out()], _Made(dtype, (3,))
    if op == "linear_combination":
        return [[drawn() for _ in range(3)], weights, out(), channel_dim], _Made(dtype, (2,))
    if op == "linear_combination_guided":
        branches = [[drawn() for _ in range(3)] for _ in range(2)]
        return [*branches, weights, 4.0, out(), channel_dim], _Made(dtype, (4,))
    if op == "accumulate_and_test":
        error, change = (torch.rand(math.prod(shape), device=device) for _ in range(2))
        return [error, change, 0.1, 0.5, 0.9, torch.zeros(1, dtype=torch.int32, device=device)], _Made(fp32, (0, 5))
    raise ValueError(f"nothing is known of the op {op!r}")


def _plain(op: str) -> Callable[..., Any]:
    from .ops.inner import bound

    return bound(op, "torch")


def _kernel(op: str, impl: str) -> Callable[..., Any]:
    from .ops.inner import bound

    return bound(op, impl)


def _truth(op: str, arguments: list[Any], made: _Made) -> list[torch.Tensor]:
    """In fp64."""
    from . import reference

    given = [a for i, a in enumerate(arguments) if i not in made.written or op == "accumulate_and_test"]
    result = getattr(reference, op)(*given[: -1 if op == "accumulate_and_test" else None])
    results = result if isinstance(result, tuple) else (result,)
    return [torch.as_tensor(r).double().cpu() for r in results]


def _off(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """The largest error; infinite for what is not finite."""
    errors = [float((f.double().cpu() - t.cpu()).abs().max()) for f, t in zip(found, truth, strict=True)]
    return max(e if e == e else float("inf") for e in errors)


def _microseconds(call: Callable[[], Any], device: torch.device) -> float:
    """The median of several; on a GPU by its events, launches back to back."""
    for _ in range(3):
        call()
    if device.type != "cuda":
        times = []
        stop = time.perf_counter() + 0.15
        while len(times) < 7 or (time.perf_counter() < stop and len(times) < 200):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return round(1e6 * statistics.median(times), 2)
    times = []
    for _ in range(7):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(20):
            call()
        last.record()
        torch.cuda.synchronize(device)
        times.append(1e3 * first.elapsed_time(last) / 20)
    return round(statistics.median(times), 2)


if __name__ == "__main__":
    main()
