"""Proves the kernels on this device before they are used: ``vaccel doctor --certify``.

In a process of its own every kernel computes what its fp64 reference does, in several sizes and dtypes, and is timed
beside eager torch.  One that is wrong, crashes or does not come back is never used: the process is killed, another one
goes on with the rest, and the table (``vaccel.ops.certified``) says why.  Whatever happens there, this process goes on.

On a GPU a chain of small operations is captured there as well, and replayed beside eager torch: captured steps are used
unasked only where that gave the same bits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from . import capture
from .ops import certified
from .ops.certified import SIZES, Table

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Seconds that one kernel may take for one size and dtype, compiling it included, and all of them together.
EACH, ALL = 60.0, 600.0
#: Seconds that they may take all together when they were not asked for.
FIRST = 120.0
CHANNELS = 16
#: The cell of captured steps; elements, rounds of five operations and replays of its chain, and the ops of which the
#: first that has a chosen kernel is in it.
GRAPHS, CHAIN, ROUNDS, REPLAYS = "graphs", 2**16, 9, 3
IN_CHAIN = ("direction_magnitude", "cfg_combine", "norm", "cosine", "relative_l1")
_LOG = logging.getLogger("vaccel")
_TRIED: set[torch.device] = set()

Progress = Callable[[int, int, str], None]


def certify(
    device: torch.device | str = "cpu", *, each: float = EACH, most: float = ALL, progress: Progress | None = None,
    command: Sequence[str] = (sys.executable, "-m", "vaccel.certify"),
) -> Table:  # fmt: skip
    """Measures every kernel on a device and writes its table to the user's cache; returns it.

    Args:
        each: seconds that a kernel may take for one size and dtype.
        most: seconds for all of them; what is not reached by then is not used.
        progress: called with (done, total, what).
        command: the process that measures.

    Raises ``OSError`` where the cache cannot be written to; the table is in the exception's ``table`` then.
    """
    device = torch.device(device)
    every, rows, refused = list(_cells(device)), [], []
    done: set[tuple[str, ...]] = set()
    began = time.monotonic()
    while len(done) < len(every) and time.monotonic() - began < most:
        bad = {(r["op"], r["impl"]) for r in refused}
        left = [cell for cell in every if cell not in done and (cell[0], cell[1]) not in bad]
        if not left:
            break
        stuck, why = None, ""
        for event in _events([*command, "--device", str(device)], left, min(each, most - time.monotonic() + began)):
            if "row" in event:
                rows.append(event["row"])
                done.add(tuple(event["cell"]))
                if progress is not None:
                    progress(len(done), len(every), "{} {} {}".format(*event["cell"]))
                stuck = None
            elif "begin" in event:
                stuck = tuple(event["begin"])
            else:
                why = event["ended"]
        if stuck is not None:
            refused.append({"op": stuck[0], "impl": stuck[1], "why": f"{why} at {stuck[3]} elements in {stuck[2]}"})
        elif len(done) < len(every) and why:
            refused += [{"op": op, "impl": impl, "why": why} for op, impl in sorted({c[:2] for c in left})]
            break
    missing = {cell[:2] for cell in every if cell not in done} - {(r["op"], r["impl"]) for r in refused}
    refused += [{"op": op, "impl": impl, "why": f"not reached within {most:g} s"} for op, impl in sorted(missing)]
    found = Table(rows, refused)
    if device.type in capture.DEVICES:
        if progress is not None:
            progress(len(done), len(every), GRAPHS)
        found.graphs = _graphs([*command, "--device", str(device)], found, min(each, most - time.monotonic() + began))
    try:
        certified.save(device, found)
    except OSError as error:
        error.table = found  # type: ignore[attr-defined]
        raise
    return found


def _graphs(command: list[str], found: Table, limit: float) -> dict[str, Any]:
    """What the measuring process finds of captured steps, with a kernel among them that is chosen there."""
    if limit <= 0:
        return _unproven("not reached in time")
    chosen = ((op, found.choice(op, "float32", CHAIN) or "torch") for op in IN_CHAIN)
    op, impl = next((each for each in chosen if each[1] != "torch"), (IN_CHAIN[0], "torch"))
    row, ended = _unproven("nothing was measured"), ""
    for event in _events(command, [(GRAPHS, op, impl, str(CHAIN))], limit):
        row, ended = event.get("row", row), event.get("ended", "")
    return _unproven(ended) if ended else row  # one that has crashed when all was said is not trusted either


def _unproven(why: str) -> dict[str, Any]:
    return {"passed": False, "why": why, "launch_us": 0.0, "replay_us": 0.0}


def first_use(device: torch.device) -> None:
    """Certifies a GPU that vaccel is used on for the first time, once in a process, and never fails."""
    if device.type != "cuda" or certified.off() or device in _TRIED or certified.table(device) is not None:
        return
    _TRIED.add(device)
    _LOG.warning(
        "vaccel measures its kernels and CUDA graphs on this GPU, once, in %g s at most; VACCEL_KERNELS=torch leaves "
        "them out",
        FIRST,
    )
    try:
        certify(device, most=FIRST)
    except Exception as error:  # whatever it is, torch computes what the kernels would
        _LOG.warning("vaccel's kernels are not used: %s", error)


def _cells(device: torch.device) -> Iterator[tuple[str, str, str, str]]:
    """(op, implementation, dtype, elements) of all that is measured."""
    from .ops.inner import NAMES

    for op in NAMES:
        for impl in certified.implementations(device):
            dtypes = ["float32"] if op == "accumulate_and_test" else list(DTYPES)
            yield from ((op, impl, dtype, str(size)) for dtype in dtypes for size in SIZES)


def _events(command: list[str], cells: list[tuple[str, ...]], limit: float) -> Iterator[dict[str, Any]]:
    """What the measuring process says, line by line, and at last how it ended; killed where it is silent for longer."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []

    def read() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    for target in (read, lambda: errors.extend(process.stderr)):
        threading.Thread(target=target, daemon=True).start()
    ended = ""
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(cells))
            process.stdin.close()
        while (line := lines.get(timeout=limit)) is not None:
            with contextlib.suppress(ValueError):
                yield json.loads(line)
        code = process.wait(timeout=limit)
        last = next((line.strip() for line in reversed(errors) if line.strip()), "")
        ended = "" if code == 0 else f"it crashed with signal {-code}" if code < 0 else f"it failed: {last[:200]}"
    except (queue.Empty, subprocess.TimeoutExpired):
        ended = f"it did not come back within {limit:.0f} s"
    finally:
        process.kill()
        process.wait()
    yield {"ended": ended}


# -- in the measuring process ----------------------------------------------------------------------------------------


def main() -> None:
    """Measures the cells that standard input has, a line of JSON before and after each."""
    parser = argparse.ArgumentParser(description="Measures kernels for vaccel.certify.")
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    for cell in json.loads(sys.stdin.read()):
        print(json.dumps({"begin": cell}), flush=True)
        row = graphs_measured(device, *cell[1:]) if cell[0] == GRAPHS else measured(device, *cell)
        print(json.dumps({"row": row, "cell": cell}), flush=True)


def measured(device: torch.device, op: str, impl: str, dtype: str, elements: str) -> dict[str, Any]:
    """A row of the table: one kernel, right or not, and its time beside torch's."""
    arguments, made = _arguments(op, int(elements), DTYPES[dtype], device)
    plain, kernel, truth = _plain(op), _kernel(op, impl), _truth(op, arguments, made)
    row = {"op": op, "impl": impl, "dtype": dtype, "elements": int(elements)}
    try:
        plainly, found = (_off(made(function, arguments), truth) for function in (plain, kernel))
    except Exception as error:  # a kernel may refuse in many ways
        return {**row, "passed": False, "why": f"it failed: {str(error)[:200]}", "us": 0.0, "torch_us": 0.0}
    # As the ops' tests have it: at most twice the plain formula's own error, or four roundings.
    scale = 1.0 if op == "cosine" else max(float(t.abs().max()) for t in truth)  # whose terms are of that size
    allowed = max(2 * plainly, 2 * torch.finfo(made.dtype).eps * scale)
    good = found <= allowed
    why = "" if good else f"off by {found:.3g}, torch by {plainly:.3g}, at {elements} elements in {dtype}"
    us, torch_us = (_microseconds(lambda f=f: f(*arguments), device) for f in (kernel, plain)) if good else (0.0, 0.0)
    return {**row, "passed": bool(good), "why": why, "us": us, "torch_us": torch_us, "error": found}


def graphs_measured(device: torch.device, op: str, impl: str, elements: str) -> dict[str, Any]:
    """Whether a captured chain gives the bits of an eager one for new inputs, and microseconds an operation of both."""
    row = {"op": op, "impl": impl, "elements": int(elements)}
    arguments, made = _arguments(op, int(elements), torch.float32, device)
    given, kernel = arguments[0], _kernel(op, impl)

    def chain(x: torch.Tensor) -> list[torch.Tensor]:
        y = x
        for _ in range(ROUNDS):
            y = torch.tanh(y * 1.5 + x)
            y = y - y.mean(-1, keepdim=True)
        # Whole numbers, so that no order of summation gives another product.
        whole = torch.round(4 * y)
        return [y, whole @ whole.transpose(-1, -2), *made(kernel, [y, *arguments[1:]])]

    try:
        with capture.on(device if device.index is not None else None):
            chain(given)
            backend = graph_backend()
            replay, outputs = backend.capture(lambda: chain(given))
            wrong = 0
            for _ in range(REPLAYS):
                given.copy_(torch.randn_like(given))
                replay()
                wrong += not all(torch.equal(a, b) for a, b in zip(outputs, chain(given), strict=True))
            if wrong:
                return {**row, **_unproven(f"{wrong} of {REPLAYS} replays differ from eager torch")}
            launch_us, replay_us = (_microseconds(f, device) for f in (lambda: chain(given), replay))
    except Exception as error:  # a capture may be refused in many ways
        return {**row, **_unproven(f"it failed: {str(error)[:200]}")}
    operations = 5 * ROUNDS + 5
    return {**row, "passed": True, "why": "", "operations": operations,
            "launch_us": round(launch_us / operations, 3), "replay_us": round(replay_us / operations, 3)}  # fmt: skip


def graph_backend() -> capture.Backend:
    """What captures in the measuring process: the same as in a run."""
    return capture.CudaBackend()


class _Made:
    """What an op leaves: its results, or what it has written into the last argument."""

    def __init__(self, dtype: torch.dtype, written: tuple[int, ...] = ()):
        self.dtype, self.written = dtype, written

    def __call__(self, function: Callable[..., Any], arguments: list[Any]) -> list[torch.Tensor]:
        copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        result = function(*copies)
        return [copies[i] for i in self.written] if self.written else [result]


def _arguments(op: str, elements: int, dtype: torch.dtype, device: torch.device) -> tuple[list[Any], _Made]:
    shape = (1, CHANNELS, max(elements // CHANNELS, 1))

    def drawn() -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    out, magnitude = torch.full(shape, float("nan"), device=device, dtype=dtype), torch.tensor([2.5], device=device)
    weights = torch.randn(3, 1, CHANNELS, device=device)
    fp32 = torch.float32
    if op == "norm":
        return [drawn()], _Made(fp32)
    if op in ("cosine", "relative_l1"):
        return [drawn(), drawn()], _Made(fp32)
    if op == "direction_magnitude":
        return [drawn(), drawn(), magnitude], _Made(dtype)
    if op == "cfg_combine":
        return [drawn(), drawn(), 4.0, out], _Made(dtype, (3,))
    if op == "linear_combination":
        return [[drawn() for _ in range(3)], weights, out, 1], _Made(dtype, (2,))
    if op == "linear_combination_guided":
        return [[drawn() for _ in range(3)], [drawn() for _ in range(3)], weights, 4.0, out, 1], _Made(dtype, (4,))
    if op == "accumulate_and_test":
        error, change = (torch.rand(elements, device=device) for _ in range(2))
        return [error, change, 0.1, 0.5, 0.9, torch.zeros(1, dtype=torch.int32, device=device)], _Made(fp32, (0, 5))
    raise ValueError(f"nothing is known of the op {op!r}")


def _plain(op: str) -> Callable[..., Any]:
    from .ops.inner import bound

    return bound(op, "torch")


def _kernel(op: str, impl: str) -> Callable[..., Any]:
    from .ops.inner import bound

    return bound(op, impl)


def _truth(op: str, arguments: list[Any], made: _Made) -> list[torch.Tensor]:
    """In fp64."""
    from . import reference

    given = [a for i, a in enumerate(arguments) if i not in made.written or op == "accumulate_and_test"]
    result = getattr(reference, op)(*given[: -1 if op == "accumulate_and_test" else None])
    results = result if isinstance(result, tuple) else (result,)
    return [torch.as_tensor(r).double().cpu() for r in results]


def _off(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """The largest error; infinite for what is not finite."""
    errors = [float((f.double().cpu() - t.cpu()).abs().max()) for f, t in zip(found, truth, strict=True)]
    return max(e if e == e else float("inf") for e in errors)


def _microseconds(call: Callable[[], Any], device: torch.device) -> float:
    """The median of several; on a GPU by its events, launches back to back."""
    for _ in range(3):
        call()
    if device.type != "cuda":
        times = []
        stop = time.perf_counter() + 0.15
        while len(times) < 7 or (time.perf_counter() < stop and len(times) < 200):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return round(1e6 * statistics.median(times), 2)
    times = []
    for _ in range(7):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(20):
            call()
        last.record()
        torch.cuda.synchronize(device)
        times.append(1e3 * first.elapsed_time(last) / 20)
    return round(statistics.median(times), 2)


if __name__ == "__main__":
    main()
