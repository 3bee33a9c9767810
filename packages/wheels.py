"""Builds what is published, into ``dist/``: ``make wheels``.

The sdist; ``vaccel`` for this Python, its kernels on Python's and torch's stable ABIs, its schedule solver (pybind11)
for this Python alone; and, where there is nvcc, ``vaccel-cu13`` for every Python.  auditwheel says how old a system may
be; torch's own libraries are the user's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from installs import ROOT, sdist

DIST = ROOT / "dist"
TORCH = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libtorch_python.so", "libc10.so", "libc10_cuda.so")


def run(*command: str, environ: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, **(environ or {})})
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} ... failed")


def wheel(source: Path, out: Path, environ: dict[str, str]) -> None:
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "wheel", "--no-deps"]
    run(*pip, "--no-build-isolation", "--no-cache-dir", "-w", str(out), str(source), environ=environ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DIST, help="the folder; dist/ by default")
    dist = parser.parse_args().out
    dist.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        shutil.copy2(sdist(Path(sys.executable), Path(folder)), dist)
        wheel(ROOT, raw, {"VACCEL_NATIVE": "1"})
        if shutil.which("nvcc"):
            wheel(ROOT / "packages" / "vaccel-cu13", raw, {})
        else:
            print("nvcc not found: no vaccel-cu13")
        excluded = [part for name in TORCH for part in ("--exclude", name)]
        for made in sorted(raw.glob("*.whl")):
            tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            run(sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", str(dist), str(made),
                environ={"PATH": tools})  # fmt: skip
    for path in sorted(dist.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.name}")


if __name__ == "__main__":
    main()
