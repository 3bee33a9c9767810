"""Builds the CUDA kernels into one library: by nvcc alone, against torch's headers, without a GPU or a CUDA torch.

The CUDA runtime is linked statically, so that no libcudart has to be found: where torch brings a CUDA of its own, both
use the driver's primary context and torch's streams.  torch's symbols are resolved when the library is loaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flags import ALL_ARCHITECTURES, CUDA_FLAGS

HERE = Path(__file__).resolve().parent


class NoCompilerError(RuntimeError):
    """There is no nvcc."""


def nvcc() -> str:
    """The compiler: ``$CUDA_HOME/bin/nvcc``, or that of the path.  Raises ``NoCompilerError`` without one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        found = shutil.which("nvcc", path=os.path.join(home, "bin"))
    else:
        found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        where = f"in CUDA_HOME={home}" if home else ": install the CUDA toolkit, or set CUDA_HOME to where it is"
        raise NoCompilerError(f"nvcc was not found {where}")
    return found


def architectures(asked: str | None = None) -> list[str]:
    """GPU generations: those ``asked`` for ("80;90"), those of this machine's GPUs, or all that the compiler knows.

    Raises ``RuntimeError`` for one that the compiler does not know.
    """
    said = subprocess.run([nvcc(), "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    known = {line.removeprefix("compute_") for line in said.split()}
    if asked:
        wanted = [a.strip().replace(".", "") for a in asked.replace(",", ";").split(";") if a.strip()]
        if strange := [a for a in wanted if a not in known]:
            raise RuntimeError(f"{nvcc()} does not know sm_{strange[0]}; it knows {', '.join(sorted(known, key=int))}")
        return sorted(set(wanted), key=int)
    return _here() or [a for a in ALL_ARCHITECTURES if a in known]


def _here() -> list[str]:
    import torch

    return sorted({"{}{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())})


def build(out: Path, chosen: Sequence[str], jobs: int | None = None) -> None:
    """Compiles every source for the ``chosen`` generations, the newest as PTX too, and links ``out``.

    Raises ``RuntimeError`` with the compiler's message.
    """
    from torch.utils.cpp_extension import include_paths

    newest = max(chosen, key=int)
    codes = [f"-gencode=arch=compute_{a},code=[sm_{a}{f',compute_{a}' if a == newest else ''}]" for a in chosen]
    includes = [part for path in include_paths() for part in ("-isystem", path)]
    flags = [*CUDA_FLAGS, "-Xcompiler=-fPIC,-fvisibility=hidden", *codes, *includes, f"-I{HERE / 'include'}"]
    sources = sorted((HERE / "cuda").glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        objects = [Path(folder, f"{source.stem}.o") for source in sources]
        commands = [[nvcc(), *flags, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
        list(pool.map(_run, commands))
        out.parent.mkdir(parents=True, exist_ok=True)
        _run([nvcc(), "-shared", "-cudart", "static", *codes, *map(str, objects), "-o", str(out)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.stderr.strip():
        print(done.stderr, file=sys.stderr)
