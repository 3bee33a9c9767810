"""Compiles every native source with warnings as errors: ``make compile-check``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fPIC"]


def main() -> int:
    """Returns how many sources failed."""
    failed = 0
    # torch's own headers are not ours to keep free of warnings.
    includes = [f"-isystem{path}" for path in include_paths()] + [f"-I{HERE / 'include'}"]
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(HERE.rglob("*.cpp")):
            target = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-c", str(source), "-o", f"{folder}/out.o"]
            result = subprocess.run(["g++", *FLAGS, *includes, *target], check=False)
            print(f"{'ok' if result.returncode == 0 else 'FAILED':7} {source.relative_to(HERE.parent)}")
            failed += result.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
