"""What the profiler sees of a step and of an op: launches, synchronisations, allocations."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from vaccel import ops

WATCHED = {
    "launches": (
        "cudaLaunchKernel",
        "cudaLaunchKernelExC",
        "cudaLaunchCooperativeKernel",
        "cuLaunchKernel",
        "cuLaunchKernelEx",
    ),
    "graph launches": ("cudaGraphLaunch",),
    "synchronisations": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    "allocations": ("cudaMalloc", "cudaMallocAsync", "cudaHostAlloc", "cuMemCreate"),
}


def seen(function: Callable[[], object], device: str) -> Counter:
    """How often each of ``WATCHED`` was called while ``function`` ran."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        function()
    calls = Counter({event.key: event.count for event in profiler.key_averages()})
    return Counter({what: sum(calls[name] for name in names) for what, names in WATCHED.items()})


def launches(device: str) -> dict[str, dict[str, int]]:
    """Kernel launches of one call of each op, by implementation."""
    found: dict[str, dict[str, int]] = {}
    for path in sorted((Path(__file__).resolve().parent.parent / "tests" / "ops").glob("test_*.py")):
        module = importlib.import_module(path.stem)
        for case in vars(module).values():
            if type(case).__name__ != "Case" or case.op in found:
                continue
            args = case.make((1, 16, 8, 32, 32), torch.bfloat16, device=device)
            found[case.op] = {}
            for impl in ("cuda", "triton", "torch") if device == "cuda" else ("cpp", "torch"):
                case.run(args, impl)
                out = torch.empty_like(args[0])
                found[case.op][impl] = seen(lambda c=case, i=impl, a=args, o=out: _call(c, a, i, o), device)["launches"]
    return found


def _call(case: object, args: tuple, impl: str, out: torch.Tensor) -> None:
    getattr(ops, case.op)(*case.grouped(args), *((out,) if case.writes else ()), impl=impl, **case.options)
