"""Which kernels have proven themselves on this device: a table in the user's cache, made by ``vaccel.certify``.

A row is an op's implementation for one dtype and number of elements: whether it was right, and how long it took beside
eager torch.  Of those that were right everywhere the fastest is chosen for each size class, torch unless it is at least
``GAIN`` faster.  The table holds for this device, its driver, torch and vaccel alone.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ._native import CUDA_DETAIL, CUDA_LOADED, DETAIL, LOADED

#: A kernel is chosen where it takes so much less time than torch, or less.
GAIN = 0.95
#: Numbers of elements that are measured; a size class reaches half-way to the next one, geometrically.
SIZES = (2**10, 2**16, 2**20, 2**23)
#: On a GPU also hidden states' size, where there is memory for it.
LARGE = 2**26


def folder() -> Path:
    return _folder(os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))


@functools.lru_cache(maxsize=16)
def _folder(cache: str | None, home: str | None) -> Path:
    return Path(cache or Path.home() / ".cache") / "vaccel" / "certified"


def off() -> bool:
    """Whether ``VACCEL_KERNELS=torch`` asks for plain torch."""
    return os.environ.get("VACCEL_KERNELS") == "torch"


def described(device: torch.device) -> dict[str, str]:
    """What a table holds for."""
    found = {"vaccel": __version__, "torch": torch.__version__, "device": device.type}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),  # a slice of a GPU has fewer
            "driver": _driver(),
            "library": _stamp(CUDA_DETAIL if CUDA_LOADED else ""),
        }
    else:
        found |= {
            "name": platform.processor() or platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": str(torch.get_num_threads()),
            "library": _stamp(DETAIL if LOADED else ""),
        }
    return found


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return ""


def _stamp(path: str) -> str:
    """The library's size and time: another one is another kernel."""
    try:
        status = Path(path).stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def path_of(device: torch.device) -> Path:
    """Where this device's table is, or will be."""
    return _joined(folder(), _name(device, torch.get_num_threads() if device.type == "cpu" else 0))


_joined = functools.lru_cache(maxsize=16)(Path.joinpath)  # asked for at every step by some


@functools.lru_cache(maxsize=16)
def _name(device: torch.device, threads: int) -> str:
    said = json.dumps(described(device), sort_keys=True).encode()
    return f"{device.type}-{hashlib.sha256(said).hexdigest()[:16]}.json"


class Table:
    """What was measured.

    Args:
        rows: {"op", "impl", "dtype", "elements", "passed", "why", "us", "torch_us", ...} each; ``passed`` is None where
            memory was too short to tell.
        refused: {"op", "impl", "why"} of implementations that crashed, hung or were wrong.
        graphs: {"passed", "why", "launch_us", "replay_us", ...} of captured steps: whether they gave eager's bits, and
            how long a small operation takes, launched and replayed; None where that was not measured.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        refused: Sequence[Mapping[str, str]] = (),
        graphs: Mapping[str, Any] | None = None,
    ):
        self.rows, self.refused = [dict(r) for r in rows], [dict(r) for r in refused]
        self.graphs = None if graphs is None else dict(graphs)
        self._bad = {(r["op"], r["impl"]) for r in self.refused}
        self._bad |= {(r["op"], r["impl"]) for r in self.rows if r["passed"] is False}

    def choice(self, op: str, dtype: str, elements: int) -> str | None:
        """The implementation for so many elements: "torch" where none is faster, None where nothing was measured."""
        sizes = self._sizes(op, dtype)
        if not sizes:
            return None
        size = min(sizes, key=lambda s: abs(_log(s) - _log(elements)))
        best, least = "torch", None
        for row in self.rows:
            if (row["op"], row["dtype"], row["elements"]) != (op, dtype, size) or not row["passed"]:
                continue
            if (op, row["impl"]) in self._bad:
                continue
            if row["us"] <= GAIN * row["torch_us"] and (least is None or row["us"] < least):
                best, least = row["impl"], row["us"]
        return best

    def _sizes(self, op: str, dtype: str) -> list[int]:
        """Numbers of elements that were measured."""
        told = (r for r in self.rows if r["passed"] is not None)
        return sorted({r["elements"] for r in told if r["op"] == op and r["dtype"] == dtype})

    def limits(self, op: str, dtype: str) -> list[tuple[float, str]] | None:
        """[(up to so many elements, implementation)], ascending; None where nothing was measured."""
        sizes = self._sizes(op, dtype)
        if not sizes:
            return None
        ends = [(a * b) ** 0.5 for a, b in itertools.pairwise(sizes)] + [float("inf")]
        found: list[tuple[float, str]] = []
        for size, end in zip(sizes, ends, strict=True):
            impl = self.choice(op, dtype, size) or "torch"
            if found and found[-1][1] == impl:
                found.pop()
            found.append((end, impl))
        return found

    def notes(self) -> list[str]:
        """A line for every implementation that is not used because it failed."""
        wrong = {(r["op"], r["impl"]): r["why"] for r in self.rows if r["passed"] is False}
        wrong |= {(r["op"], r["impl"]): r["why"] for r in self.refused}
        said = [f"kernels: {op} by torch, not by {impl}: {why}" for (op, impl), why in sorted(wrong.items())]
        short = sorted({r["why"] for r in self.rows if r["passed"] is None})
        return [*said, *(f"kernels: {why}: what is chosen for smaller ones is used" for why in short)]

    def to_json(self) -> dict[str, Any]:
        graphs = {} if self.graphs is None else {"graphs": self.graphs}
        return {"rows": self.rows, "refused": self.refused, **graphs}


def _log(value: int) -> float:
    return torch.log2(torch.tensor(float(max(value, 1)))).item()


def table(device: torch.device) -> Table | None:
    """This device's table; None where there is none, or it cannot be read."""
    if off():
        return None
    try:
        path = str(path_of(device))
        stamp = os.stat(path).st_mtime_ns
    except (OSError, RuntimeError):
        return None
    return _table(path, stamp)


@functools.lru_cache(maxsize=8)
def _table(path: str, stamp: int) -> Table | None:
    try:
        data = json.loads(Path(path).read_text())
        return Table(data["rows"], data["refused"], data.get("graphs"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def without_graphs(device: torch.device) -> str:
    """Why captured steps are not used unasked on this device; empty where they have proven themselves."""
    if off():
        return "VACCEL_KERNELS=torch leaves them out"
    found = table(device)
    if found is None or found.graphs is None:
        return "not certified on this device (vaccel doctor --certify)"
    if found.graphs.get("passed") is not True:
        return f"not right on this device: {found.graphs.get('why') or 'no reason kept'}"
    return ""


def save(device: torch.device, found: Table) -> Path:
    """Writes the table.  Raises ``OSError`` where the cache cannot be written to."""
    path = path_of(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({"of": described(device), **found.to_json()}, indent=1))
    partial.replace(path)
    return path


def implementations(device: torch.device) -> list[str]:
    """Those that could run on this device, torch aside."""
    from ._dispatch import TRITON

    if device.type == "cuda":
        return ["cuda"] * CUDA_LOADED + ["triton"] * TRITON
    return ["cpp"] * LOADED


def all_of(ops: Iterable[str], found: Table, dtype: str) -> dict[str, list[tuple[float, str]]]:
    """``Table.limits`` of the ops that were measured."""
    limits = {op: found.limits(op, dtype) for op in ops}
    return {op: each for op, each in limits.items() if each is not None}
