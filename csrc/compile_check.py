"""Compiles every native source with warnings as errors: ``make compile-check``.

CUDA sources are compiled for every GPU generation where nvcc is at hand (no GPU is needed).  A kernel that spills
registers to memory, takes more of them than two blocks on a multiprocessor can have, or does not load and store sixteen
bytes at once counts as a failure.  ``--out FILE`` writes what became of each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pybind11
import sass
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
        # All generations at once: torch's headers are then read once for the host.
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
        for source in sorted(HERE.rglob("*.cu")):
            target = [*CUDA_FLAGS, *CUDA_WARNINGS, *codes, *includes, "-c", str(source)]
            found.append((str(source.relative_to(HERE.parent)), [nvcc, *target]))
    else:
        print("nvcc not found: the CUDA sources are not checked")
    return found


def compiles(what: str, command: list[str]) -> tuple[bool, list[dict[str, Any]]]:
    """Whether it compiles as it must, and what became of its kernels; says so."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.o")
        result = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, check=False)
        dissected = what.endswith(".cu") and result.returncode == 0 and sass.cuobjdump()
        kernels = [kernel for arch in ARCHITECTURES * bool(dissected) for kernel in sass.kernels(out, f"sm_{arch}")]
    faults = [f"{spilled} bytes spilled" for spilled in SPILLS.findall(result.stderr)]
    faults += [
        f"{k['architecture']} {k['kernel']} {k['formula']} {k['dtype']}: {said}"
        for k in kernels
        for said in sass.wrong(k)
    ]
    good = result.returncode == 0 and not faults
    most = f": {len(kernels)} kernels, {max(k['registers'] for k in kernels)} registers at most" if kernels else ""
    print(f"{'ok' if good else 'FAILED':7} {what}{most}{''.join(f'; {fault}' for fault in faults)}", flush=True)
    if result.returncode:
        print(result.stderr)
    return good, [{"source": what, **kernel} for kernel in kernels]


def main() -> int:
    """Returns how many compilations failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a JSON file with a row a CUDA kernel and GPU generation")
    out = parser.parse_args().out
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda item: compiles(*item), commands()))
    rows = [row for _, kernels in done for row in kernels]
    if out is not None:
        release = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        content = {
            "command": "python csrc/compile_check.py --out FILE", "compiler": release.strip().splitlines()[-1],
            "rows": rows,
        }  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1) + "\n")
    return sum(not good for good, _ in done)


if __name__ == "__main__":
    sys.exit(main())
