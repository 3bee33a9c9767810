"""Everything that needs a GPU, one part a call, each within 9 minutes: for a machine where vaccel is not installed.

    python bench/gpu_suite.py build                 # the kernels, in place
    python bench/gpu_suite.py tests                 # the tests marked gpu
    python bench/gpu_suite.py kernels               # every op at every size, beside eager torch and torch.compile
    python bench/gpu_suite.py graphs                # steps eager and captured; launches, syncs and allocations
    python bench/gpu_suite.py actions --size Wan2.1-14B        # what each action costs, in every mode
    python bench/gpu_suite.py runs --size Wan2.1-14B --only DirectionMagnitude      # 50-step runs and their ratios
    python bench/gpu_suite.py experts --size Wan2.1-14B        # two experts over one model: time and memory

Every part writes ``bench/results/<gpu>/<part>.json`` (or under ``--out``) with device, driver, versions and commit, and
prints it.  ``--dry`` runs the same lines at tiny sizes without a GPU, into out/dry: what CI can check of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

ROOT = Path(__file__).resolve().parent.parent
# The package from here, whether or not it is installed, and the ops' cases from their tests.
sys.path[:0] = [str(ROOT / folder) for folder in (".", "kernels", "bench", "tests/ops", "tests")]

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
Dry = Annotated[bool, typer.Option(help="Tiny sizes, without a GPU.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the JSON in place of bench/results.")]
Size = Annotated[str, typer.Option(help="Wan2.1-14B or Wan2.1-1.3B.")]
Seconds = Annotated[float, typer.Option(help="No new measurement is begun after so long.")]


def environment() -> dict[str, str]:
    """Of a child process, which is to find what this one does."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def device(dry: bool) -> str:
    if not dry and not torch.cuda.is_available():
        raise typer.BadParameter("no GPU here; --dry runs the same lines without one")
    return "cpu" if dry else "cuda"


def fresh(name: str) -> Path:
    """A file under out/ that does not exist yet."""
    path = ROOT / "out" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def save(part: str, payload: dict[str, Any], dry: bool, out: Path | None) -> None:
    """Writes the part's JSON and prints it."""
    import results

    where = "cpu" if dry else torch.cuda.get_device_name().split()[-1].lower()
    command = "python bench/gpu_suite.py " + " ".join(sys.argv[1:])
    path = results.write(part, payload, where, command, folder=out or (ROOT / "out" / "dry" if dry else None))
    print(json.dumps(payload, indent=1)[-6000:])
    print(f"written to {path}")


@app.command()
def build(dry: Dry = False) -> None:
    """Build the kernels in place, the CUDA ones for the GPUs that are here."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    cuda = {} if dry else {"VACCEL_CUDA": "1", "CUDA_HOME": os.environ.get("CUDA_HOME", "/usr/local/cuda")}
    subprocess.run(command, cwd=ROOT, env={**environment(), **cuda}, check=True)


@app.command("tests")
def run_tests(
    only: Annotated[str, typer.Option(help="pytest's -k.")] = "test", dry: Dry = False, out: Out = None
) -> None:
    """Run the tests marked gpu; without a GPU one op's tests, to try the report."""
    import xml.etree.ElementTree as ElementTree

    device(dry)
    chosen = ["tests/ops/test_norm.py", "-k", "fp64 and cpp"] if dry else ["tests", "-m", "gpu", "-k", only]
    report = fresh("gpu_tests.xml")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *chosen]
    began = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode
    if not report.exists():  # pytest has said why
        raise typer.Exit(code)
    suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [f"{c.get('classname')}::{c.get('name')}" for c in suite.iter("testcase")
              if c.find("failure") is not None or c.find("error") is not None]  # fmt: skip
    seconds = round(time.monotonic() - began, 1)
    save("tests", {**counts, "failed": failed, "exit_code": code, "seconds": seconds}, dry, out)
    raise typer.Exit(code)


@app.command()
def kernels(
    only: Annotated[str, typer.Option(help="Only files whose name holds this.")] = "", dry: Dry = False, out: Out = None
) -> None:
    """Benchmark the ops."""
    import collect

    device(dry)
    others = ("bench_overhead", "bench_schedules")  # no ops
    files = sorted(str(p) for p in (ROOT / "bench").glob("bench_*.py") if p.stem not in others)
    files = [f for f in files if (only or ("norm" if dry else "")) in f]
    report = fresh("kernels.json")
    quick = {"VACCEL_BENCH_QUICK": "1"} if dry else {}
    command = [sys.executable, "-m", "pytest", "-q", *files, f"--benchmark-json={report}", "--benchmark-columns=median"]
    code = subprocess.run(command, cwd=ROOT, env={**environment(), **quick}, check=False).returncode
    if not report.exists():  # pytest has said why
        raise typer.Exit(code)
    measured = json.loads(report.read_text())["benchmarks"]
    save("kernels", {"unit": "us", "exit_code": code, "rows": collect.rows(measured)}, dry, out)
    raise typer.Exit(code)


def models(dry: bool, size: str, small: str, clip: str) -> tuple[Any, Any, dict[str, Any]]:
    """A pipeline, a small model, and what to say of them in the JSON; tiny ones in a dry run."""
    import e2e

    on = device(dry)
    if dry:
        size = small = clip = "tiny"
    pipe, small_model = e2e.pipeline(size, on, torch.bfloat16), e2e.transformer(small, on, torch.bfloat16)
    return pipe, small_model, {"size": size, "small": small, "clip": clip}


def accelerated(pipe: Any, actions: list[Any], small: Any, **options: Any) -> Any:
    """The handle of a pipeline that does ``actions``."""
    import vaccel

    method = vaccel.Schedule.from_actions(actions)
    return vaccel.accelerate(pipe, method, small=small if method.needs_small else None, **options)


@app.command()
def graphs(dry: Dry = False, out: Out = None) -> None:
    """Eager steps beside captured ones, and what the profiler sees of them."""
    import e2e
    import launches

    pipe, small, about = models(dry, "Wan2.1-1.3B", "Wan2.1-1.3B", "480p, 17 frames")
    payload: dict[str, Any] = {**about, "steps_ms": {}, "steps_seen": {}}
    modes = {"eager": {}} if dry else {"eager": {}, "cuda graphs": {"cuda_graphs": True}}
    steps = len(e2e.EVERY_ACTION)
    for mode, options in modes.items():
        with accelerated(pipe, e2e.EVERY_ACTION, small, **options) as handle:
            e2e.run(pipe, about["clip"], steps)  # warm-up and capture
            times = e2e.run(pipe, about["clip"], steps)
            payload["steps_ms"][mode] = e2e.by_action(e2e.EVERY_ACTION, times)
            seen = launches.seen(lambda: e2e.run(pipe, about["clip"], steps), device(dry))
            payload["steps_seen"][mode] = {"run": seen, "steps": steps, "refused": handle.refused}
    payload["launches"] = launches.launches(device(dry))
    save("graphs", payload, dry, out)


@app.command()
def actions(size: Size = "Wan2.1-14B", seconds: Seconds = 420, dry: Dry = False, out: Out = None) -> None:
    """Time each action's step: eager, captured, every attention backend, and with the blocks compiled."""
    import e2e

    began = time.monotonic()
    pipe, small, about = models(dry, size, "Wan2.1-1.3B", "480p")
    payload: dict[str, Any] = {**about, "steps_ms": {}, "not_run": {}}

    def measure(mode: str, **options: Any) -> None:
        if time.monotonic() - began > seconds:
            payload["not_run"][mode] = "out of time"
            return
        try:
            with accelerated(pipe, e2e.EVERY_ACTION, small, **options):
                times = e2e.run(pipe, about["clip"], len(e2e.EVERY_ACTION))
                payload["steps_ms"][mode] = e2e.by_action(e2e.EVERY_ACTION, times)
        except ValueError as error:  # a backend that is not installed
            payload["not_run"][mode] = str(error)

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
    save(f"actions_{about['size']}", payload, dry, out)


@app.command()
def runs(
    size: Size = "Wan2.1-14B",
    only: Annotated[str, typer.Option(help="Only schedules whose name holds this.")] = "",
    attention: Annotated[str, typer.Option(help="Attention backend of all runs.")] = "auto",
    cuda_graphs: Annotated[bool, typer.Option(help="With captured steps.")] = True,
    seconds: Seconds = 420,
    dry: Dry = False,
    out: Out = None,
) -> None:
    """Replay 50-step schedules; their ratio to the full model, whose steps are timed in the same runs."""
    import e2e

    began = time.monotonic()
    pipe, small, about = models(dry, size, "Wan2.1-1.3B", "480p")
    options = {"attention": attention, "cuda_graphs": cuda_graphs and not dry}
    payload: dict[str, Any] = {**about, **options, "runs": {}, "not_run": []}
    for name, (steps, published, source) in e2e.SCHEDULES.items():
        if only not in name or (dry and "B=" in name):
            continue
        if time.monotonic() - began > seconds:
            payload["not_run"].append(name)
            continue
        with accelerated(pipe, steps, small, **options) as handle:
            times = e2e.run(pipe, about["clip"], e2e.STEPS)
        full = e2e.by_action(steps, times)["Full"]
        total = sum(times[1:]) + full["median"]  # the first step's capture and warm-up counted as a usual step
        payload["runs"][name] = {
            "timeline": handle.trace.timeline(), "full_step_ms": full, "seconds": round(sum(times) / 1000, 3),
            "seconds_without_capture": round(total / 1000, 3), "speedup": round(e2e.STEPS * full["median"] / total, 3),
            "published": published, "source": source,
        }  # fmt: skip
    save(f"runs_{about['size']}", payload, dry, out)


def random_experts(pipe: Any, folder: Path, rank: int) -> Path:
    """The base itself as the semantic expert, LoRA and fresh layers of a real shape for the detail expert."""
    from vaccel.experts.files import save_experts
    from vaccel.experts.trees import Adapter, adapted, own_parameters
    from vaccel.models import find
    from vaccel.planning.trajectory import Trajectory

    family = find(pipe.transformer)
    adapter = Adapter(rank, 2 * rank, family.attention_targets, family.fresh)
    own = own_parameters(adapted(pipe.transformer, adapter), adapter)
    detail = {k: p + 1e-3 * torch.randn_like(p) for k, p in own.items()}
    return save_experts(
        folder, pipe.transformer, trajectory=Trajectory("flow", 17.0), boundary=0.7, detail=detail, adapter=adapter
    )


@app.command()
def experts(size: Size = "Wan2.1-14B", dry: Dry = False, out: Out = None) -> None:
    """Eight steps by two experts over one model: every step's time in every mode, and the memory beside the base."""
    import tempfile

    import e2e

    import vaccel

    pipe, small, about = models(dry, size, "Wan2.1-1.3B", "480p")
    del small
    allocated = torch.cuda.memory_allocated if not dry else lambda: 0
    payload: dict[str, Any] = {**about, "base_bytes": allocated(), "modes": {}}
    payload["full_steps_ms"] = e2e.run(pipe, about["clip"], 3)
    modes: dict[str, dict[str, Any]] = {"lora": {}, "merged": {}}
    if not dry:
        modes["lora, cuda graphs"] = {"cuda_graphs": True}
    with tempfile.TemporaryDirectory() as folder:
        saved = random_experts(pipe, Path(folder), 2 if dry else 128)
        for mode, options in modes.items():
            with vaccel.accelerate(pipe, vaccel.DualExpert(saved, 8, mode == "merged"), **options) as handle:
                e2e.run(pipe, about["clip"], 8)  # warm-up and capture
                times = e2e.run(pipe, about["clip"], 8)
                payload["modes"][mode] = {
                    "steps_ms": times, "first_detail_step_excess": times[4] / sorted(times[5:])[1] - 1,
                    "bytes": handle.expert_bytes, "allocated": allocated(), "refused": handle.refused,
                    "timeline": handle.trace.timeline(),
                }  # fmt: skip
    save(f"experts_{about['size']}", payload, dry, out)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    app()
