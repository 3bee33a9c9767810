"""How fast an op is: its kernels beside eager torch and ``torch.compile`` of the same formula, in one run.

    pytest bench/bench_norm.py ... --benchmark-json=out/kernels.json && python bench/collect.py out/kernels.json

Shapes are those of real models.  Every contender's result is checked against fp64 before it is timed.  GB/s count the
bytes that the formula has to move, once each; beside them stands the bandwidth of a copy of the same bytes, measured in
the same run.  On a GPU the statistics are the host's, of a call and the wait for it; ``device_us`` is the GPU's time
alone, by events, with a cold cache.  ``VACCEL_BENCH_QUICK=1`` keeps the small shapes: every line runs, no figure means
anything.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import harness
import pytest
import torch

from vaccel import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QUICK = os.environ.get("VACCEL_BENCH_QUICK") == "1"
LARGEST = 40_000_000 if DEVICE == "cpu" else 2**33  # elements
SHAPES = {
    "64 elements": (1, 64),
    "demo family, latents": (1, 64, 5, 6, 6),
    "CogVideoX, latents": (1, 13, 16, 60, 90),
    "Wan 480p, latents": (1, 16, 21, 60, 104),
    "Wan 720p, latents": (1, 16, 21, 90, 160),
    "HunyuanVideo 720p, latents": (1, 16, 33, 90, 160),
    "Qwen-Image, hidden states": (1, 4096, 3072),
    "CogVideoX-5B, hidden states": (1, 17550, 3072),
    "Wan 1.3B 480p, hidden states": (1, 32760, 1536),
    "Wan 14B 480p, hidden states": (1, 32760, 5120),
    "HunyuanVideo 720p, hidden states": (1, 118800, 3072),
    "Wan 14B 720p, hidden states": (1, 75600, 5120),
}
SMALL = 100_000
COMPILED = "Wan 480p, latents"  # the size that torch.compile is measured at on a CPU
DTYPES = (torch.float32, torch.bfloat16)
#: Op -> its case, and how many tensors like x its formula reads and writes; filled as the benchmarks are made.
MEASURED: dict[str, tuple[harness.Case, int]] = {}


def contenders() -> list[str]:
    """On a CPU the C++ kernel is the default wherever it is not one operation of eager torch."""
    return [*(["cuda", "triton"] if DEVICE == "cuda" else ["default"]), "eager", "compiled"]


def shapes() -> list[str]:
    limit = SMALL if QUICK else LARGEST
    return [name for name, shape in SHAPES.items() if torch.Size(shape).numel() <= limit]


def bench(case: harness.Case, traffic: int, name: str | None = None) -> Callable:
    """The benchmark of one op; ``traffic`` is how many tensors like x it reads and writes.

    ``name`` is what the op is called in the results, where it is measured in more ways than one.
    """
    name = name or case.op
    MEASURED[name] = case, traffic

    @pytest.mark.parametrize("contender", contenders())
    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
    @pytest.mark.parametrize("shape", shapes())
    def test(benchmark: Any, shape: str, dtype: torch.dtype, contender: str) -> None:
        if contender == "compiled" and DEVICE == "cpu" and shape != COMPILED:
            pytest.skip("compiled at one size: on a CPU it takes longer than everything else")
        args = case.make(SHAPES[shape], dtype, device=DEVICE)
        call = _call(case, args, contender)
        moved = traffic * args[0].numel() * args[0].element_size()
        benchmark.group = f"{name} {shape} {dtype}"
        benchmark.extra_info |= {"op": name, "shape": shape, "elements": args[0].numel(), "bytes": moved,
                                 "dtype": str(dtype), "contender": contender, "device": DEVICE,
                                 "copy_gb_s": copy_bandwidth(moved)}  # fmt: skip
        if DEVICE == "cuda":
            benchmark.extra_info |= {"device_us": device_us(call), "copy_device_us": copy_device_us(moved)}
        benchmark.pedantic(_waited(call), rounds=_rounds(_waited(call)), warmup_rounds=3)

    return test


def _waited(call: Callable[[], None]) -> Callable[[], None]:
    """The call, and on a GPU the wait for it."""
    if DEVICE != "cuda":
        return call

    def waited() -> None:
        call()
        torch.cuda.synchronize()

    return waited


def device_us(call: Callable[[], None], rounds: int = 15) -> float:
    """Median microseconds of a call on the GPU, what it reads not in its cache."""
    times = []
    for _ in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        _flush().zero_()  # takes longer than it takes the host to bring the call on its way
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(1000 * start.elapsed_time(end))
    return sorted(times[3:])[rounds // 2]


@functools.cache
def _flush() -> torch.Tensor:
    return torch.empty(2**28, dtype=torch.uint8, device=DEVICE)


@functools.cache
def copy_device_us(moved: int) -> float:
    """The same of a copy that reads and writes ``moved`` bytes in all."""
    source = torch.zeros(max(1, moved // 2), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return device_us(lambda: target.copy_(source))


def _call(case: harness.Case, args: tuple, contender: str) -> Callable[[], None]:
    """One timed call, its result checked before."""
    impl = {"default": None, "eager": "torch", "compiled": "torch"}.get(contender, contender)
    out = (torch.empty_like(args[0]),) if case.writes else ()
    op = functools.partial(getattr(ops, case.op), impl=impl, **case.options)
    if contender == "compiled":
        torch._dynamo.reset()
        op = torch.compile(op, fullgraph=True)
    harness.check(case, args, impl, op)
    given = (*case.grouped(args), *out)

    def call() -> None:
        op(*given)

    return call


def _rounds(call: Callable[[], None], seconds: float = 0.3 if DEVICE == "cpu" else 0.02) -> int:
    """As many as take about ``seconds``, between 10 and 2000."""
    call()
    start = time.perf_counter()
    call()
    return max(10, min(2000, int(seconds / max(time.perf_counter() - start, 1e-7))))


@functools.cache
def copy_bandwidth(moved: int) -> float:
    """GB/s of a copy that reads and writes ``moved`` bytes in all; the median of some."""
    source = torch.zeros(max(1, moved // 2), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)

    call = _waited(lambda: target.copy_(source))
    times = []
    for _ in range(_rounds(call, 0.1 if DEVICE == "cpu" else 0.02)):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return moved / sorted(times)[len(times) // 2] / 1e9
