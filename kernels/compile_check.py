"""Compiles every Triton kernel ahead of time: ``make compile-check``.  No GPU is needed.

Every kernel, for every storage format it takes and every GPU generation, specialised as launches specialise it: sizes
that are ones, sizes and addresses that are multiples of sixteen or not, sizes past 32 bits.  One that spills registers,
or that reads and writes multiples of sixteen in less than sixteen bytes at once, counts as failed.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import triton
import vaccel_kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vaccel_kernels import frame, linear_combination

ARCHITECTURES = (80, 90, 100)
STORAGE = ("fp32", "fp16", "bf16")
CONSTANTS = {"CHUNK": frame.CHUNK, "PARTIALS": frame.PARTIALS, "BLOCK": 1024, "COUNT": 6}
#: What a parameter is, by name; a pointer that is not here points to what is stored.
TYPES = {
    "partial_ptr": "*fp32",
    "factor_ptr": "*fp32",
    "magnitude_ptr": "*fp32",
    "error_ptr": "*fp32",
    "change_ptr": "*fp32",
    "flag_ptr": "*i32",
}
SIZES = ("n", "chunks", "batch", "of_set", "rows", "channels", "inner", "table")


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a launch specialises a kernel for.

    Attributes:
        of: GPU generations it is compiled for.
        size: the type of sizes.
        pointers, sizes: whether they are multiples of sixteen.
        ones: sizes that are 1, and so constants.
    """

    name: str
    of: tuple[int, ...]
    size: str = "i32"
    pointers: bool = True
    sizes: bool = True
    ones: tuple[str, ...] = ()


VARIANTS = (
    Variant("multiples of 16", ARCHITECTURES),
    Variant("odd sizes", (90,), sizes=False),
    Variant("unaligned", (90,), pointers=False, sizes=False),
    Variant("past 32 bits", (90,), size="i64"),
    Variant("one channel, one row", (90,), ones=("rows", "channels", "table")),
)
WIDE = re.compile(r"(ld|st)\.global[\w.:]*\.(?:v4\.b32|v2\.b64|b128)")
SPILLS = re.compile(r"([1-9]\d*) bytes spill")
BACKEND = Path(triton.backends.__path__[0]) / "nvidia" / "bin"


def kernels() -> Iterator[triton.JITFunction]:
    for info in pkgutil.iter_modules(vaccel_kernels.__path__):
        module = importlib.import_module(f"vaccel_kernels.{info.name}")
        yield from (value for name, value in vars(module).items() if name.endswith("_kernel"))


def signatures(kernel: triton.JITFunction, variant: Variant) -> Iterator[tuple[str, dict[str, str], bool]]:
    """(storage format, types by parameter, whether it stores): a kernel that touches only sums has one."""
    names = kernel.arg_names
    # Where a kernel makes a row's number of partial sums, its output is a number, not something stored.
    finishes = names[0] == "partial_ptr"
    stored = [n for n in names if n.endswith("_ptr") and n not in TYPES and not (finishes and n == "out_ptr")]
    for storage in STORAGE if stored else STORAGE[:1]:
        types = {}
        for name in names:
            if name in CONSTANTS or name in variant.ones:
                types[name] = "constexpr"
            elif name.endswith("_ptr"):
                types[name] = TYPES.get(name, f"*{storage if name in stored else 'fp32'}")
            else:
                types[name] = variant.size if name in SIZES else "fp32"
        yield storage, types, bool(stored)


def attributes(names: list[str], types: dict[str, str], variant: Variant) -> dict[tuple[int], list[list[object]]]:
    """What is known of each parameter."""
    multiple = [["tt.divisibility", 16]]
    found = {}
    for i, name in enumerate(names):
        pointer, size = name.endswith("_ptr"), name in SIZES and types[name] != "constexpr"
        if (pointer and variant.pointers) or (size and variant.sizes):
            found[(i,)] = multiple
    return found


def spilled(ptx: str, architecture: int) -> int:
    """Bytes that ptxas spills."""
    newer = BACKEND / "ptxas-blackwell"
    ptxas = newer if architecture >= 100 and newer.exists() else BACKEND / "ptxas"
    target = re.search(r"\.target (\w+)", ptx).group(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(ptxas), "-v", f"--gpu-name={target}", str(source), "-o", f"{folder}/kernel.cubin"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    return max(map(int, SPILLS.findall(result.stderr)), default=0)


def checked(kernel: triton.JITFunction, storage: str, types: dict[str, str], wide: bool, variant: Variant) -> list[str]:
    """A line for every GPU generation; what is wrong begins with FAILED."""
    constants = {n: CONSTANTS.get(n, 1) for n, type in types.items() if type == "constexpr"}
    if kernel.__name__.startswith("guided_") and "CHUNK" in constants:
        constants["CHUNK"] = linear_combination.chunk_of(2, 16 if variant.sizes else 1)
    said = []
    for architecture in variant.of:
        source = ASTSource(
            fn=kernel, signature=types, constexprs=constants, attrs=attributes(kernel.arg_names, types, variant)
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=frame.OPTIONS)
        ptx = compiled.asm["ptx"]
        wrong = [f"{bytes_spilled} bytes spilled"] if (bytes_spilled := spilled(ptx, architecture)) else []
        if wide and variant.pointers and variant.sizes and not set(WIDE.findall(ptx)):
            wrong.append("nothing is read or written in sixteen bytes at once")
        what = f"{kernel.__name__} {storage} sm_{architecture}, {variant.name}"
        said.append(f"{'FAILED' if wrong else 'ok':7} {what}{': ' * bool(wrong)}{', '.join(wrong)}")
    return said


def main() -> int:
    """Returns how many compilations failed."""
    every = [
        (kernel, *signature, variant)
        for kernel in kernels()
        for variant in VARIANTS
        if all(name in kernel.arg_names for name in variant.ones)
        for signature in signatures(kernel, variant)
    ]
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for lines in pool.map(lambda each: checked(*each), every):
            print("\n".join(lines), flush=True)
            failed += sum(line.startswith("FAILED") for line in lines)
    return failed


if __name__ == "__main__":
    sys.exit(main())
