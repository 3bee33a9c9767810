"""Compiles every native source with warnings as errors: ``make compile-check``.

CUDA sources are compiled for every GPU generation where nvcc is at hand (no GPU is needed); a kernel that spills
registers to memory counts as a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from flags import ARCHITECTURES, CUDA_FLAGS, FLAGS
from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).resolve().parent
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-fPIC"]
CUDA_WARNINGS = ["-Werror=all-warnings", "-Xcompiler=-Wall,-fPIC", "-Xptxas=-v"]
SPILLS = re.compile(r"([1-9]\d*) bytes spill")


def commands() -> list[tuple[str, list[str]]]:
    """(what, command) of every compilation, without its output file."""
    # Others' headers are not ours to keep free of warnings.
    torch = [path for include in include_paths() for path in ("-isystem", include)]
    python = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    includes = [*torch, f"-I{HERE / 'include'}"]
    found = []
    for source in sorted(HERE.rglob("*.cpp")):
        if source.parent.name == "emulation":  # compiled, and run, by emulate.py
            continue
        # The schedule solver is to do without torch, whose headers hold another pybind11.
        seen = python if source.parent.name == "solver" else includes
        found.append((str(source.relative_to(HERE.parent)), ["g++", *FLAGS, *WARNINGS, *seen, "-c", str(source)]))
    if nvcc := shutil.which("nvcc"):
        for source in sorted(HERE.rglob("*.cu")):
            for arch in ARCHITECTURES:
                target = [*CUDA_FLAGS, *CUDA_WARNINGS, f"-arch=sm_{arch}", *includes, "-c", str(source)]
                found.append((f"{source.relative_to(HERE.parent)} sm_{arch}", [nvcc, *target]))
    else:
        print("nvcc not found: the CUDA sources are not checked")
    return found


def compiles(what: str, command: list[str]) -> bool:
    """Whether it compiles, without spilling; says so."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run([*command, "-o", f"{folder}/out.o"], capture_output=True, text=True, check=False)
    spills = SPILLS.findall(result.stderr)
    good = result.returncode == 0 and not spills
    print(f"{'ok' if good else 'FAILED':7} {what}" + (f": {max(map(int, spills))} bytes spilled" if spills else ""))
    if result.returncode:
        print(result.stderr)
    return good


def main() -> int:
    """Returns how many compilations failed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(not good for good in pool.map(lambda item: compiles(*item), commands()))


if __name__ == "__main__":
    sys.exit(main())
