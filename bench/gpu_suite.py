"""Everything that needs a GPU, one part a call, each within 9 minutes: for a machine where vaccel is not installed.

    python bench/gpu_suite.py all --minutes 8       # the parts but experts, in the order of their worth, until then
    python bench/gpu_suite.py build                 # the kernels, in place
    python bench/gpu_suite.py certify               # every kernel right or refused, and its time beside torch's
    python bench/gpu_suite.py tests                 # the tests marked gpu
    python bench/gpu_suite.py kernels               # every op at every size, beside eager torch and torch.compile
    python bench/gpu_suite.py families              # every method on the trained families: fidelity and time
    python bench/gpu_suite.py graphs                # steps eager and captured; launches, syncs and allocations
    python bench/gpu_suite.py rivals --model LTX-2  # whole runs beside diffusers' caches, cache-dit, compiled blocks
    python bench/gpu_suite.py overhead              # what a step costs the host, beside them
    python bench/gpu_suite.py actions --size Wan2.1-14B        # what each action costs, in every mode
    python bench/gpu_suite.py runs --size Wan2.1-14B --only DirectionMagnitude      # 50-step runs and their ratios
    python bench/gpu_suite.py experts --size Wan2.1-14B        # two experts over one model: time and memory

Every part writes ``bench/results/<gpu>/<part>.json`` (or under ``--out``) with device, driver, versions and commit, and
prints it.  It is written after every measurement, as ``<part>.partial.json`` until the part is done; ``all`` adds
``suite.json``, how each part went.  ``--dry`` runs the same lines at tiny sizes without a GPU, into out/dry: what CI
can check of it (``build`` then compiles nothing).  Needs diffusers, and pytest-benchmark for the kernels.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

ROOT = Path(__file__).resolve().parent.parent
# The package from here, whether or not it is installed, and the ops' cases from their tests.
sys.path[:0] = [str(ROOT / folder) for folder in (".", "kernels", "bench", "tests/ops", "tests")]

from gpu_parts import Measured, Part, run_all, target, write  # noqa: E402 - found by the line above

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


def known(size: str) -> str:
    if size not in SIZES:
        raise typer.BadParameter(f"{size!r} is none of {', '.join(SIZES)}")
    return size


SIZES = ("Wan2.1-14B", "Wan2.1-1.3B")
Dry = Annotated[bool, typer.Option(help="Tiny sizes, without a GPU.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the JSON in place of bench/results.")]
Size = Annotated[str, typer.Option(help=" or ".join(SIZES) + ".", callback=known)]
Seconds = Annotated[float, typer.Option(help="No new measurement is begun after so long.")]

#: What ``all`` gives each part of 8 minutes, seconds, in the order of their worth: whether the kernels are right comes
#: before how fast they are, and whole runs of real shapes before single steps.  Estimates for an H100 and its 16 cores:
#: the CUDA files take 5 s each, one a core, but a minute and a half where ninja is missing; 1400 small tests; every op
#: at its two usual sizes; two modes of a short clip; half of the contenders on a short clip of Wan2.1-14B's and LTX-2's
#: shapes, ours, the full run and the compiled one first; some of Wan2.1-1.3B's actions; two or three of its runs.
SHARES = {
    "build": 45, "certify": 30, "tests": 85, "kernels": 55, "rivals Wan2.1-14B": 75, "rivals LTX-2": 55,
    "families": 40, "graphs": 25, "actions": 30, "runs": 40, "overhead": 20, "rivals Flux": 25,
}  # fmt: skip
#: What a part's JSON is called where it is not called like the part.
STEMS = {"overhead": "overhead_tests"}


def environment() -> dict[str, str]:
    """Of a child process, which is to find what this one does."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def device(dry: bool) -> str:
    if not dry and not torch.cuda.is_available():
        raise typer.BadParameter("no GPU here; --dry runs the same lines without one")
    return "cpu" if dry else "cuda"


@app.command("all")
def everything(
    minutes: Annotated[float, typer.Option(help="For all parts together.")] = 8,
    size: Size = "Wan2.1-1.3B",
    dry: Dry = False,
    out: Out = None,
) -> None:
    """Every part but experts, each in a process of its own within a share of the time."""
    device(dry)
    began = time.monotonic()
    folder = target(dry, out)[1].resolve()
    size = "tiny" if dry else size

    def keep(summary: dict[str, Any]) -> None:
        seconds = round(time.monotonic() - began, 1)
        write("suite", {"minutes": minutes, "size": size, "seconds": seconds, "parts": summary}, dry, folder)

    parts = []
    for name, share in SHARES.items():
        part, _, model = name.partition(" ")
        stem, options = STEMS.get(part, part), ["--dry"] if dry else []
        if part in ("actions", "runs"):
            stem, options = f"{part}_{size}", options or ["--size", size]
        elif part == "rivals":
            stem, options = f"rivals_{model}{'_tiny' if dry else ''}", [*options, "--model", model]
        command = [sys.executable, __file__, part, *options, "--out", str(folder)]
        parts.append(Part(name, share, command, stem, timed=part != "build"))
    code = run_all(parts, 60 * minutes, folder, environment(), keep)
    print(f"written to {folder / 'suite.json'}")
    raise typer.Exit(code)


@app.command()
def build(dry: Dry = False, out: Out = None) -> None:
    """Build the kernels in place, the CUDA ones for the GPUs that are here; a dry run compiles nothing."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    cuda = {"VACCEL_CUDA": "1", "CUDA_HOME": os.environ.get("CUDA_HOME", "/usr/local/cuda")}
    env = {**environment(), **({"VACCEL_NATIVE": "0"} if dry else cuda)}
    measured = Measured("build", dry, out, said=[])
    began = time.monotonic()
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        for line in child.stdout:
            print(line, end="", flush=True)
            if line.startswith("vaccel: "):  # what setup.py leaves out, and why
                measured.payload["said"].append(line.strip())
    built = sorted(path.name for path in (ROOT / "vaccel").glob("_*.so"))
    measured.payload |= {"exit_code": child.returncode, "seconds": round(time.monotonic() - began, 1), "built": built}
    if child.returncode:
        measured.payload["failed"]["setup.py"] = f"exit status {child.returncode}"
    if not dry and (measured.payload["said"] or not any(name.startswith("_native_cuda.") for name in built)):
        measured.payload["failed"]["left out"] = "\n".join(measured.payload["said"]) or "no CUDA kernels were built"
    measured.done()


Figures = Callable[[list[dict[str, Any]]], dict[str, Any]]


def run_pytest(measured: Measured, arguments: list[str], seconds: float, figures: Figures, **env: str) -> None:
    """Runs pytest; what ``figures`` makes of its lines is saved as they come.  Exits as pytest did."""
    import pytest_lines

    began = time.monotonic()

    def keep(said: list[dict], code: int | None) -> None:
        about = {"exit_code": code, "seconds": round(time.monotonic() - began, 1)}
        measured.payload = {**pytest_lines.counted(said), **figures(said), **about}
        measured.save()

    code = pytest_lines.run(arguments, ROOT, {**environment(), **env}, seconds, keep)
    measured.done()
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)  # as a shell says it of a signal


@app.command()
def certify(seconds: Seconds = 120, dry: Dry = False, out: Out = None) -> None:
    """Prove every kernel on the device, as ``vaccel doctor --certify``: its table, and what is refused and why."""
    import gpu_runs

    measured = Measured("certify", dry, out, rows=[], refused=[])
    gpu_runs.certify(measured, device(dry), seconds, dry)
    measured.done()


@app.command("tests")
def run_tests(
    only: Annotated[str, typer.Option(help="pytest's -k.")] = "test",
    seconds: Seconds = 480,
    dry: Dry = False,
    out: Out = None,
) -> None:
    """Run the tests marked gpu; without a GPU one op's tests, to try the report."""
    device(dry)
    rehearsal = ["tests/ops/test_norm.py", "-k", "fp64 and not cuda and not triton"]
    chosen = rehearsal if dry else ["tests", "-m", "gpu", "-k", only]
    # A file that cannot be imported costs its own tests; a test that hangs says where.
    careful = ["--continue-on-collection-errors", "-o", "faulthandler_timeout=30"]
    run_pytest(Measured("tests", dry, out), [*careful, *chosen], seconds, lambda said: {})


@app.command()
def kernels(
    only: Annotated[str, typer.Option(help="Only files whose name holds this.")] = "",
    seconds: Seconds = 480,
    dry: Dry = False,
    out: Out = None,
) -> None:
    """Benchmark the ops: the usual sizes first, torch.compile last."""
    import collect
    import pytest_lines

    device(dry)
    files = sorted(str(p) for p in (ROOT / "bench").glob("bench_*.py") if "op_bench.bench(" in p.read_text())
    files = [f for f in files if (only or ("norm" if dry else "")) in f]

    def figures(said: list[dict]) -> dict[str, Any]:
        return {"unit": "us", "rows": collect.rows(pytest_lines.benchmarks(said))}

    quick = {"VACCEL_BENCH_QUICK": "1"} if dry else {}
    run_pytest(Measured("kernels", dry, out), [*files, "--benchmark-columns=median"], seconds, figures, **quick)


def models(dry: bool, size: str, small: str, clip: str) -> tuple[Any, Any, dict[str, Any]]:
    """A pipeline, a small model, and what to say of them in the JSON; tiny ones in a dry run."""
    import e2e

    on = device(dry)
    if dry:
        size = small = clip = "tiny"
    pipe, small_model = e2e.pipeline(size, on, torch.bfloat16), e2e.transformer(small, on, torch.bfloat16)
    return pipe, small_model, {"size": size, "small": small, "clip": clip}


@app.command()
def graphs(seconds: Seconds = 420, dry: Dry = False, out: Out = None) -> None:
    """Eager steps beside captured ones, and what the profiler sees of them."""
    import e2e
    import launches
    from gpu_runs import accelerated

    until = time.monotonic() + seconds
    pipe, small, about = models(dry, "Wan2.1-1.3B", "Wan2.1-1.3B", "480p, 17 frames")
    measured = Measured("graphs", dry, out, **about, steps_ms={}, steps_seen={}, not_run=[])
    modes = {"eager": {}} if dry else {"eager": {}, "cuda graphs": {"cuda_graphs": True}}
    steps = len(e2e.EVERY_ACTION)
    for mode, options in modes.items():
        if time.monotonic() > until:
            measured.payload["not_run"].append(mode)
            continue
        with measured.measuring(mode), accelerated(pipe, e2e.EVERY_ACTION, small, **options) as handle:
            e2e.run(pipe, about["clip"], steps)  # warm-up and capture
            times = e2e.run(pipe, about["clip"], steps)
            measured.payload["steps_ms"][mode] = e2e.by_action(e2e.EVERY_ACTION, times)
            measured.save()  # the profiler takes longer than the steps
            seen = launches.seen(lambda: e2e.run(pipe, about["clip"], steps), device(dry))
            measured.payload["steps_seen"][mode] = {"run": seen, "steps": steps, "refused": handle.refused}
    with measured.measuring("launches"):
        measured.payload["launches"] = launches.launches(device(dry))
    measured.done()


@app.command()
def actions(size: Size = "Wan2.1-14B", seconds: Seconds = 420, dry: Dry = False, out: Out = None) -> None:
    """Time each action's step: eager, captured, every attention backend, and with the blocks compiled."""
    import e2e
    from gpu_runs import accelerated

    until = time.monotonic() + seconds
    pipe, small, about = models(dry, size, "Wan2.1-1.3B", "480p")
    measured = Measured(f"actions_{about['size']}", dry, out, **about, steps_ms={}, not_run={})
    took = 0.0  # by the mode before

    def measure(mode: str, **options: Any) -> None:
        nonlocal took
        began = time.monotonic()
        if began + took > until:
            measured.payload["not_run"][mode] = "out of time"
            return
        with measured.measuring(mode):
            try:
                handle = accelerated(pipe, e2e.EVERY_ACTION, small, **options)
            except ValueError as error:  # a backend that is not installed
                measured.payload["not_run"][mode] = str(error)
                return
            with handle:
                if "cuda_graphs" in options:  # an action is captured when it comes again
                    e2e.run(pipe, about["clip"], len(e2e.EVERY_ACTION))
                times = e2e.run(pipe, about["clip"], len(e2e.EVERY_ACTION))
                measured.payload["steps_ms"][mode] = e2e.by_action(e2e.EVERY_ACTION, times)
        took = time.monotonic() - began

    measure("eager")
    if not dry:
        measure("cuda graphs", cuda_graphs=True)
    for name in ["_native_math"] if dry else ["sdpa", "cudnn", "flash2", "flash3", "sageattention"]:
        measure(f"attention {name}", attention=name)
    if not dry:
        for model in (pipe.transformer, small):
            model.compile_repeated_blocks(fullgraph=True)
        measure("blocks compiled")
        measure("blocks compiled, cuda graphs", cuda_graphs=True)
    measured.done()


@app.command()
def families(seconds: Seconds = 420, dry: Dry = False, out: Out = None) -> None:
    """Every method on the trained families: fidelity and time, eager and captured, in float32 and bfloat16."""
    import gpu_pipelines

    until = time.monotonic() + seconds
    measured = Measured("families", dry, out, families={}, not_run=[])
    gpu_pipelines.families(measured, device(dry), until, dry)
    measured.done()


def known_model(name: str) -> str:
    import gpu_models

    if name not in gpu_models.MODELS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(gpu_models.MODELS)}")
    return name


@app.command()
def rivals(
    model: Annotated[
        str, typer.Option(help="Wan2.1-1.3B, Wan2.1-14B, LTX-2 or Flux.", callback=known_model)
    ] = "Wan2.1-14B",
    seconds: Seconds = 420,
    dry: Dry = False,
    out: Out = None,
) -> None:
    """Whole runs with a third of the steps computed: vaccel, diffusers' caches, cache-dit, compiled blocks."""
    import gpu_pipelines

    until = time.monotonic() + seconds
    stem = f"rivals_{model}{'_tiny' if dry else ''}"
    measured = Measured(stem, dry, out, model=model, runs={}, refused={}, not_run=[])
    gpu_pipelines.rivals(measured, model, device(dry), until, dry)
    measured.done()


@app.command()
def overhead(seconds: Seconds = 480, dry: Dry = False, out: Out = None) -> None:
    """What a step costs the host, beside diffusers' caches and cache-dit (bench/bench_overhead.py)."""
    rounds = {"VACCEL_BENCH_ROUNDS": "1" if dry else "6", "VACCEL_BENCH_DEVICE": device(dry)}
    folder = str(target(dry, out)[1].resolve())
    command = ["bench/bench_overhead.py", "-k", "interleaved", "-s"]
    more = {"VACCEL_BENCH_WRITE": "1", "VACCEL_BENCH_OUT": folder}
    run_pytest(Measured("overhead_tests", dry, out), command, seconds, lambda said: {}, **rounds, **more)


@app.command()
def runs(
    size: Size = "Wan2.1-14B",
    only: Annotated[str, typer.Option(help="Only schedules whose name holds this.")] = "",
    attention: Annotated[
        str, typer.Option(help="Attention of all runs; one that quantises: of 8-bit ones alone.")
    ] = "auto",
    cuda_graphs: Annotated[bool, typer.Option(help="With captured steps.")] = True,
    seconds: Seconds = 420,
    dry: Dry = False,
    out: Out = None,
) -> None:
    """Replay 50-step schedules, the shortest first; their ratio to the full model, timed in the same runs."""
    import gpu_runs

    until = time.monotonic() + seconds
    pipe, small, about = models(dry, size, "Wan2.1-1.3B", "480p")
    options = {"attention": attention, "cuda_graphs": cuda_graphs and not dry}
    measured = Measured(f"runs_{about['size']}", dry, out, **about, **options, runs={}, not_run={})
    gpu_runs.runs(measured, pipe, small, only, options, until, dry)
    measured.done()


@app.command()
def experts(size: Size = "Wan2.1-14B", dry: Dry = False, out: Out = None) -> None:
    """Eight steps by two experts over one model: every step's time in every mode, and the memory beside the base."""
    import gpu_runs

    pipe, _, about = models(dry, size, "Wan2.1-1.3B", "480p")
    allocated = torch.cuda.memory_allocated if not dry else lambda: 0
    measured = Measured(f"experts_{about['size']}", dry, out, **about, base_bytes=allocated(), modes={})
    gpu_runs.experts(measured, pipe, allocated, dry)
    measured.done()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    if sys.argv[1:2] == ["all"]:  # ends as after Ctrl-C: with its parts ended and the summary written
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    else:  # a part that is asked to end says where it was
        faulthandler.register(signal.SIGTERM, chain=True)
    app()
