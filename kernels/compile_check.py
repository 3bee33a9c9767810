"""Compiles every Triton kernel ahead of time: ``make compile-check``.  No GPU is needed.

Every kernel, for every storage format it takes and every GPU generation; one that spills registers counts as failed.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import triton
import vaccel_kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vaccel_kernels import frame

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
    "n": "i64",
    "chunks": "i64",
    "batch": "i64",
    "of_set": "i64",
    "rows": "i64",
    "channels": "i64",
    "inner": "i64",
    "table": "i64",
}
SPILLS = re.compile(r"([1-9]\d*) bytes spill")
BACKEND = Path(triton.backends.__path__[0]) / "nvidia" / "bin"


def kernels() -> Iterator[triton.JITFunction]:
    for info in pkgutil.iter_modules(vaccel_kernels.__path__):
        module = importlib.import_module(f"vaccel_kernels.{info.name}")
        yield from (value for name, value in vars(module).items() if name.endswith("_kernel"))


def signatures(kernel: triton.JITFunction) -> Iterator[tuple[str, dict[str, str]]]:
    """(storage format, types by parameter): a kernel that touches only sums has one."""
    names = kernel.arg_names
    # Where a kernel makes a row's number of partial sums, its output is a number, not something stored.
    finishes = names[0] == "partial_ptr"
    stored = [n for n in names if n.endswith("_ptr") and n not in TYPES and not (finishes and n == "out_ptr")]
    for storage in STORAGE if stored else STORAGE[:1]:
        types = {}
        for name in names:
            if name in CONSTANTS:
                types[name] = "constexpr"
            elif name.endswith("_ptr"):
                types[name] = TYPES.get(name, f"*{storage if name in stored else 'fp32'}")
            else:
                types[name] = TYPES.get(name, "fp32")
        yield storage, types


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


def main() -> int:
    """Returns how many compilations failed."""
    failed = 0
    for kernel in kernels():
        for storage, types in signatures(kernel):
            constants = {name: CONSTANTS[name] for name, type in types.items() if type == "constexpr"}
            for architecture in ARCHITECTURES:
                source = ASTSource(fn=kernel, signature=types, constexprs=constants)
                target = GPUTarget("cuda", architecture, 32)
                compiled = triton.compile(source, target=target, options=frame.OPTIONS)
                bytes_spilled = spilled(compiled.asm["ptx"], architecture)
                failed += bytes_spilled > 0
                note = f": {bytes_spilled} bytes spilled" if bytes_spilled else ""
                print(f"{'FAILED' if bytes_spilled else 'ok':7} {kernel.__name__} {storage} sm_{architecture}{note}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
