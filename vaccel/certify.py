"""Proves the kernels on this device before they are used: ``vaccel doctor --certify``.

In a process of its own every kernel computes what its fp64 reference does, in several sizes and dtypes, and is timed
beside eager torch.  One that is wrong, crashes or does not come back is never used: the process is killed, another one
goes on with the rest, and the table (``vaccel.ops.certified``) says why.  Whatever happens there, this process goes on.

On a GPU a chain of small operations is captured there as well, and replayed beside eager torch: captured steps are used
unasked only where that gave the same bits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from . import capture
from .ops import certified
from .ops.certified import LARGE, SIZES, Table
from .proving import CHAIN, DTYPES, GRAPHS, shape_of, unproven

#: Seconds that one kernel may take for one size and dtype, compiling it included, and all of them together.
EACH, ALL = 60.0, 600.0
#: Seconds that the measuring process may take to begin, where its limit is less.
START = 60.0
#: Seconds that they may take all together when they were not asked for.
FIRST = 120.0
#: The ops of which the first that has a chosen kernel is in the chain that is captured.
IN_CHAIN = ("direction_magnitude", "cfg_combine", "norm", "cosine", "relative_l1")
_LOG = logging.getLogger("vaccel")
_TRIED: set[torch.device] = set()

Progress = Callable[[int, int, str], None]


def certify(
    device: torch.device | str = "cpu", *, each: float = EACH, most: float = ALL, shapes: Sequence[str] = (),
    compiled: bool = False, progress: Progress | None = None,
    command: Sequence[str] = (sys.executable, "-m", "vaccel.proving"),
) -> Table:  # fmt: skip
    """Measures every kernel on a device and writes its table to the user's cache; returns it.

    Args:
        each: seconds that a kernel may take for one size and dtype.
        most: seconds for all of them; what is not reached by then is not used.
        shapes: further sizes to measure, such as "1x16x21x60x104", the latents that are in use.
        compiled: time torch.compile of the formulas too, for the table; it is never chosen.
        progress: called with (done, total, what).
        command: the process that measures.

    Raises ``ValueError`` for what is no shape, and ``OSError`` where the cache cannot be written to; the table is in
    the exception's ``table`` then.
    """
    device = torch.device(device)
    every, rows, refused = list(_cells(device, shapes)), [], []
    command = [*command, "--device", str(device), *["--compiled"] * compiled]
    done: set[tuple[str, ...]] = set()
    began = time.monotonic()
    while len(done) < len(every) and time.monotonic() - began < most:
        bad = {(r["op"], r["impl"]) for r in refused}
        left = [cell for cell in every if cell not in done and (cell[0], cell[1]) not in bad]
        if not left:
            break
        stuck, why = None, ""
        for event in _events(command, left, min(each, most - time.monotonic() + began)):
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
        found.graphs = _graphs(command, found, min(each, most - time.monotonic() + began))
    try:
        certified.save(device, found)
    except OSError as error:
        error.table = found  # type: ignore[attr-defined]
        raise
    return found


def _graphs(command: list[str], found: Table, limit: float) -> dict[str, Any]:
    """What the measuring process finds of captured steps, with a kernel among them that is chosen there."""
    if limit <= 0:
        return unproven("not reached in time")
    chosen = ((op, found.choice(op, "float32", CHAIN) or "torch") for op in IN_CHAIN)
    op, impl = next((each for each in chosen if each[1] != "torch"), (IN_CHAIN[0], "torch"))
    row, ended = unproven("nothing was measured"), ""
    for event in _events(command, [(GRAPHS, op, impl, str(CHAIN))], limit):
        row, ended = event.get("row", row), event.get("ended", "")
    return unproven(ended) if ended else row  # one that has crashed when all was said is not trusted either


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


def _cells(device: torch.device, shapes: Sequence[str] = ()) -> Iterator[tuple[str, str, str, str]]:
    """(op, implementation, dtype, size) of all that is measured."""
    from .ops.inner import NAMES

    for shape in shapes:
        shape_of(shape)
    sizes = [*map(str, SIZES), *([str(LARGE)] if device.type == "cuda" else []), *shapes]
    for op in NAMES:
        for impl in certified.implementations(device):
            dtypes = ["float32"] if op == "accumulate_and_test" else list(DTYPES)
            yield from ((op, impl, dtype, size) for dtype in dtypes for size in sizes)


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
        wait = max(limit, START)  # until torch is imported and the device is there
        while (line := lines.get(timeout=wait)) is not None:
            wait = limit
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
