"""What the compiler made of the CUDA kernels: registers, and the width of what they load and store.

``compile_check.py`` holds every kernel to it.  It needs cuobjdump, of the CUDA toolkit or of Triton's package, and no
GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cuda_library import nvcc

#: What two blocks of 256 threads on a multiprocessor leave each of them.
MOST_REGISTERS = 128
FUNCTION = re.compile(r"^\s*Function\s*:?\s*(\w+)", re.M)
ACCESS = re.compile(r"\b(LDG|STG)\.E((?:\.\w+)*)")
KERNEL = re.compile(r"vaccel::(\w+)<(\d+), (.*)>\(")
FORMATS = {"__half": "fp16", "__nv_bfloat16": "bf16", "float": "fp32"}


def cuobjdump() -> str | None:
    """The program; None where there is none."""
    if found := shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(Path(nvcc()).parent)):
        return found
    try:
        import triton.backends
    except ImportError:
        return None
    bundled = Path(triton.backends.__path__[0]) / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else None


def kernels(compiled: Path, architecture: str) -> Iterator[dict[str, Any]]:
    """Every kernel that an object file has for a GPU generation such as "sm_90".

    {"architecture", "kernel", "formula", "dtype", "width", "registers", "stack", "loads", "stores"}: ``width`` is how
    many elements a pack has; ``loads`` and ``stores`` count instructions by their bits.
    """
    program = cuobjdump()
    of = ["--gpu-architecture", architecture, str(compiled)]
    usage = _by_function(_run([program, "-res-usage", *of]))
    for name, code in _by_function(_run([program, "-sass", *of])).items():
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage[name])
        widths: dict[str, Counter[int]] = {"LDG": Counter(), "STG": Counter()}
        for kind, more in ACCESS.findall(code):
            widths[kind][_bits(more)] += 1
        named = _named(_run(["c++filt", name]).strip())
        counts = {"loads": dict(widths["LDG"]), "stores": dict(widths["STG"])}
        yield {
            "architecture": architecture, **named, "registers": int(found[1]), "stack": int(found[2]), **counts,
        }  # fmt: skip


def wrong(kernel: dict[str, Any]) -> list[str]:
    """What a kernel does that it must not."""
    said = []
    if kernel["registers"] > MOST_REGISTERS:
        said.append(f"{kernel['registers']} registers, {MOST_REGISTERS} at most")
    if kernel["stack"]:
        said.append(f"{kernel['stack']} bytes of local memory")
    if kernel["width"] > 1:
        if not kernel["loads"].get(128):
            said.append("no load of 16 bytes")
        stores = kernel["kernel"] != "reduce_kernel" or "Stats" in kernel["formula"]  # others leave only sums
        if stores and not kernel["stores"].get(128):
            said.append("no store of 16 bytes")
    return said


def _bits(modifiers: str) -> int:
    sizes = [int(bits) for bits in re.findall(r"\d+", modifiers)]
    return sizes[0] if sizes else 32


def _by_function(text: str) -> dict[str, str]:
    parts = FUNCTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _named(signature: str) -> dict[str, Any]:
    """Of "void vaccel::map_kernel<8, __half, vaccel::Sum, ...>(...)"."""
    if (found := KERNEL.search(signature)) is None:
        return {"kernel": signature.split("(")[0].split("::")[-1], "formula": "", "dtype": "fp32", "width": 1}
    types = [part.strip().removeprefix("vaccel::") for part in found[3].split(",")]
    formula = next(t for t in types if t not in FORMATS and not t.startswith("("))
    split = next((f", factors {t[-1]}" for t in types if t.startswith("(vaccel::Factors)")), "")
    dtype = next(FORMATS[t] for t in types if t in FORMATS)
    return {"kernel": found[1], "formula": formula + split, "dtype": dtype, "width": int(found[2])}


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
