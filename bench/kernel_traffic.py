"""How many bytes each op moves: ``python bench/kernel_traffic.py`` writes bench/results/cpu/traffic.json.

Counted in tensors of the latents' size, read or written: what the formula needs at least (every input once, the output
once), what the fused kernels move, and what eager torch moves, by watching every operation that it runs.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import results
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (2, 64, 8, 16, 16)
#: Ops that need a row's sum before they write its first element read their inputs again, from the cache if they fit.
TWICE = ("direction_magnitude", "direction_magnitude_guided")


class Traffic(TorchDispatchMode):
    """Bytes that the operations inside read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        view = bool(function.is_view) or function.namespace == "prims" or "empty" in function.name()
        if not view:
            read = given if "out" not in (kwargs or {}) else [t for t in given if t is not kwargs["out"]]
            self.bytes += sum(t.numel() * t.element_size() for t in [*read, *made])
        return result


def main() -> None:
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "ops")]
    op_bench = importlib.import_module("op_bench")
    for path in sorted((ROOT / "bench").glob("bench_*.py")):
        if "op_bench.bench(" in path.read_text():
            importlib.import_module(path.stem)
    rows = []
    for name, (case, floor) in sorted(op_bench.MEASURED.items()):
        row = {"op": name, "formula": floor, "kernel": floor + (case.inputs if name in TWICE else 0)}
        for dtype in op_bench.DTYPES:
            args = case.make(SHAPE, dtype)
            with Traffic() as seen:
                result = case.plain(*args)
                if result is args[0]:  # a copy of it is meant
                    result.clone()
            tensor = args[0].numel() * args[0].element_size()
            row[f"eager {str(dtype).removeprefix('torch.')}"] = round(seen.bytes / tensor, 1)
        rows.append(row)
    payload = {"shape": list(SHAPE), "unit": "tensors like x, read or written", "rows": rows}
    print(results.write("traffic", payload, command="python bench/kernel_traffic.py"))


if __name__ == "__main__":
    main()
