"""Runs the CUDA kernels on this processor: ``make emulate``.  No GPU, no nvcc.

The sources are compiled as C++ against ``emulation/``, whose device threads are contexts that give way at barriers.

1. The races: every kernel template against sums in double, built with ThreadSanitizer, in several drawn orders.
2. Planted faults: the same with the headers broken on purpose, each of which must be noticed.
3. The ops: all sources with torch's own interface, registered for the CPU, through the ops' tests against fp64.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flags import TORCH_TARGET

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-Wno-unknown-pragmas",
         f"-I{HERE / 'emulation'}"]  # fmt: skip
SEEDS = (0, 1, 2)
#: (what, header, text, what stands there instead)
FAULTS = [
    ("a barrier before the warps' sums are read is missing", "rows.cuh",
     "  __syncthreads();\n#pragma unroll\n  for (int k = 0; k < K; ++k) {\n    sums[k] = of_warp[0][k];",
     "#pragma unroll\n  for (int k = 0; k < K; ++k) {\n    sums[k] = of_warp[0][k];"),
    ("a barrier before the warps' sums are written again is missing", "rows.cuh",
     "    for (int w = 1; w < kWarps; ++w) sums[k] += of_warp[w][k];\n  }\n  __syncthreads();",
     "    for (int w = 1; w < kWarps; ++w) sums[k] += of_warp[w][k];\n  }"),
    ("half of a warp does not shuffle", "rows.cuh", "0xffffffffu", "0x0000ffffu"),
    ("a shuffle's distance is wrong", "rows.cuh", "for (int distance = 16;", "for (int distance = 8;"),
    ("the grid is not waited for", "rows.cuh",
     "  cooperative_groups::this_grid().sync();\n  const int64_t chunks = chunks_of(n, kChunk<T>);\n  for",
     "  const int64_t chunks = chunks_of(n, kChunk<T>);\n  for"),
    ("a chunk's last pack is left out", "rows.cuh", "      if (i < end) use(i, packs[l]);",
     "      if (i < end - 1) use(i, packs[l]);"),
    ("a head is left out", "rows.cuh", "const int i = thread < head ? thread : thread + body;",
     "if (thread < head) return;\n    const int i = thread + body;"),
    ("a tail is one element short", "rows.cuh", "if (thread >= length - body) return;",
     "if (thread >= length - body - 1) return;"),
    ("a head reaches one element too far", "rows.cuh", "return head < length ? head : length;",
     "return head < length ? head + (head > 0) : length;"),
    ("a row's last pack has the next row's coefficients", "channels.cuh",
     "return e < left_ ? loaded_.value[0] : loaded_.value[1];",
     "return e <= left_ ? loaded_.value[0] : loaded_.value[1];"),
    ("a row's map is read before it is written", "rows.cuh",
     "      if (threadIdx.x == 0) of_row = reduction.map(sums, magnitude[row]);\n      __syncthreads();",
     "      if (threadIdx.x == 0) of_row = reduction.map(sums, magnitude[row]);"),
    ("a wide load where nothing is aligned", "rows.cuh", "__ldcg(reinterpret_cast<const uint4*>(from))",
     "__ldcg(reinterpret_cast<const uint4*>(reinterpret_cast<uintptr_t>(from) + 4))"),
    ("a channel's factor of its neighbour", "channels.cuh", "entry_ = table + entries(i);",
     "entry_ = table + entries(i) + 1;"),
]  # fmt: skip


def run(command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environ})


def compiled(include: Path, out: Path) -> str:
    """Builds the race check with the headers of a folder; what the compiler says where it fails."""
    flags = ["-fsanitize=thread", f"-I{include}"]
    made = run(["g++", *FLAGS, *flags, str(HERE / "emulation" / "races.cpp"), "-o", str(out)])
    return made.stderr if made.returncode else ""


def noticed(program: Path, seed: int) -> str:
    """What is wrong with a run of the race check; "" where nothing is."""
    # Where the kernel's memory is laid out at random ThreadSanitizer cannot start on some systems.
    without = ["setarch", "-R"] if shutil.which("setarch") else []
    said = run([*without, str(program)], VACCEL_EMULATED_SEED=str(seed), TSAN_OPTIONS="exitcode=66 halt_on_error=1")
    if said.returncode == 0:
        return ""
    lines = [line.strip() for line in (said.stdout + said.stderr).splitlines()]
    told = ("data race", "emulated GPU", "instead of", "wrong values", "SEGV", "ThreadSanitizer")
    return next((line for line in lines if any(t in line for t in told)), f"exit status {said.returncode}")


def races(folder: Path) -> bool:
    """The kernels as they are, in several orders."""
    began, program = time.perf_counter(), folder / "races"
    if failure := compiled(HERE / "include", program):
        raise SystemExit(failure)
    wrong = [found for seed in SEEDS if (found := noticed(program, seed))]
    print(f"{time.perf_counter() - began:5.0f} s  races: {wrong[0] if wrong else f'none in {len(SEEDS)} orders'}")
    return not wrong


def planted(folder: Path, fault: tuple[str, str, str, str]) -> bool:
    """Whether a fault is noticed in some order."""
    what, header, text, instead = fault
    include = folder / what.replace(" ", "_").replace("'", "")
    shutil.copytree(HERE / "include", include)
    path = include / "vaccel" / header
    source = path.read_text()
    if text not in source:
        raise SystemExit(f"planted fault {what!r}: {header} has other lines now, name them anew")
    path.write_text(source.replace(text, instead, 1))
    failure = compiled(include, folder / f"{include.name}.out")
    found = f"it does not compile: {failure[:300]}" if failure else ""
    for seed in SEEDS if not failure else ():
        found = found or noticed(folder / f"{include.name}.out", seed)
    good = bool(found) and not failure
    print(f"         planted: {what}: {found[:110] or 'NOT NOTICED'}", flush=True)
    return good


def library(folder: Path) -> Path:
    """The sources as a library that registers their kernels for the CPU."""
    import torch

    root = Path(torch.__file__).resolve().parent
    flags = [*FLAGS, TORCH_TARGET, f"-I{HERE / 'include'}", "-isystem", str(root / "include"), "-w"]
    sources = [*sorted((HERE / "cuda").glob("*.cu")), HERE / "schemas.cpp"]

    def compile_one(source: Path) -> Path:
        out = folder / f"{source.name}.o"
        before = ["-include", "registered.h", "-x", "c++"] if source.suffix == ".cu" else []
        made = run(["g++", *flags, *before, "-c", str(source), "-o", str(out)])
        if made.returncode:
            raise SystemExit(made.stderr)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(out) for out in pool.map(compile_one, sources)]
    out, libraries = folder / "_native.abi3.so", ["-ltorch", "-ltorch_cpu", "-lc10", "-lpthread"]
    made = run(["g++", "-shared", *objects, "-o", str(out), f"-L{root / 'lib'}", *libraries])
    if made.returncode:
        raise SystemExit(made.stderr)
    return out


def copied(folder: Path, kernels: Path) -> Path:
    """The package with these kernels in the place of the CPU's."""
    root = folder / "package"
    ignored = shutil.ignore_patterns("*.so", "weights", "image_weights", "__pycache__")
    shutil.copytree(ROOT / "vaccel", root / "vaccel", ignore=ignored)
    shutil.copy2(kernels, root / "vaccel")
    return root


def ops(folder: Path) -> bool:
    """All ops against fp64, in a process of its own."""
    began = time.perf_counter()
    root = copied(folder, library(folder))
    made = time.perf_counter() - began
    path = os.pathsep.join([str(root), str(ROOT / "tests" / "ops"), str(ROOT / "tests")])
    said = run([sys.executable, str(HERE / "emulate.py"), "--checks"], PYTHONPATH=path, VACCEL_EMULATED_SEED="1")
    print(said.stdout, end="")
    if said.returncode:
        print(said.stderr[-3000:])
    print(f"{time.perf_counter() - began:5.0f} s  ops, of which {made:.0f} s to compile", flush=True)
    return said.returncode == 0


SHAPES = ((1, 1), (3, 7), (4, 5, 33), (2, 4097), (3, 2056), (2, 3, 5, 7), (2, 64, 5, 6, 6))
LAYOUTS = ("contiguous", "unaligned", "shifted")


def checks() -> int:
    """The tests' cases over the emulated kernels; how many fail."""
    import importlib

    import harness
    import torch

    import vaccel

    torch.set_num_threads(1)
    assert vaccel.ops.native(), "the emulated kernels are not loaded"
    failed = done = 0
    for path in sorted((ROOT / "tests" / "ops").glob("test_*.py")):
        if path.stem == "test_triton_interpreted":
            continue
        module = importlib.import_module(path.stem)
        values = [v if isinstance(v, (list, tuple)) else [v] for v in vars(module).values()]
        cases = [case for group in values for case in group if isinstance(case, harness.Case)]
        for case, shape, dtype, layout in itertools.product(cases, SHAPES, harness.DTYPES, LAYOUTS):
            done += 1
            try:
                harness.check(case, case.make(shape, dtype, layout=layout), "cpp")
            except AssertionError as error:
                failed += 1
                print(f"         {case.op} {shape} {dtype} {layout}: {str(error).splitlines()[0]}", flush=True)
    print(f"         {done} checks of the ops, {failed} failed", flush=True)
    return failed


def main() -> int:
    """Returns how much went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checks", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().checks:
        return checks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = races(folder)
        began = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda fault: planted(folder, fault), FAULTS))
        print(
            f"{time.perf_counter() - began:5.0f} s  {sum(found)} of {len(found)} planted faults are noticed", flush=True
        )
        checked = ops(folder)
    return int(not good) + found.count(False) + int(not checked)


if __name__ == "__main__":
    sys.exit(main())
