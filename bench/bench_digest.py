"""The digest of a model's weights: cold (every byte is read) and warm (a few elements a tensor), and what that makes of
a 14B model.

    pytest bench/bench_digest.py                              # pytest-benchmark's table
    VACCEL_BENCH_WRITE=1 pytest bench/bench_digest.py         # and the JSON

Measured on the demo family's model and on a set of tensors of 1 GiB in bf16 with as many tensors as Wan 2.1's 14B has
(40 blocks of 27, and 15 beside them).  A cold digest costs its bytes at the bandwidth measured on the set, a warm one
its number of tensors: both are said for 14B parameters in bf16.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from results import write
from torch import nn

from vaccel.demo.family import load
from vaccel.models.weights_digest import identity

COMMAND = "VACCEL_BENCH_WRITE=1 pytest bench/bench_digest.py"
TENSORS, BYTES, LARGE = 40 * 27 + 15, 2**30, 14e9 * 2


def demo() -> nn.Module:
    return load().pipe.transformer


def gibibyte() -> nn.Module:
    each = BYTES // 2 // TENSORS
    holder = nn.Module()
    holder.weights = nn.ParameterList(
        nn.Parameter(torch.randn(each).to(torch.bfloat16), requires_grad=False) for _ in range(TENSORS)
    )
    return holder


@pytest.fixture(scope="module")
def rows() -> Iterator[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []
    yield found
    if os.environ.get("VACCEL_BENCH_WRITE") == "1":
        by = {(row["model"], row["kind"]): row for row in found}
        cold, warm = by["gibibyte", "cold"], by["gibibyte", "warm"]
        estimate = {
            "parameters": 14e9,
            "dtype": "bfloat16",
            "tensors": TENSORS,
            "cold_s": round(cold["median_s"] * LARGE / cold["bytes"], 2),
            "warm_s": warm["median_s"],
            "how": "cold: the bytes at the bandwidth of the 1 GiB set; warm: as many tensors as the set has",
        }
        write("digest", {"threads": torch.get_num_threads(), "rows": found, "estimate": estimate}, command=COMMAND)


@pytest.mark.parametrize("kind", ["cold", "warm"])
@pytest.mark.parametrize("make", [demo, gibibyte], ids=lambda make: make.__name__)
def test_identity(benchmark: Any, rows: list[dict[str, Any]], make: Any, kind: str) -> None:
    model = make()
    benchmark.group = make.__name__

    def touched() -> tuple[tuple, dict]:
        if kind == "cold":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.view(-1)[:1] += 0  # written to: read anew
        return ({"transformer": model},), {}

    first = identity({"transformer": model})
    found = benchmark.pedantic(identity, setup=touched, rounds=5, warmup_rounds=1)
    assert found == first
    if benchmark.stats is not None:
        stats = {f"{name}_s": round(getattr(benchmark.stats.stats, name), 5) for name in ("median", "q1", "q3")}
        size = {
            "tensors": sum(1 for _ in model.parameters()),
            "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        }
        rows.append({"model": make.__name__, "kind": kind, **size, **stats})
