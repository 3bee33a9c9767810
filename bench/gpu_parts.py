"""Parts of a measurement one after the other, each a process of its own with a share of the time that is left.

A crash, a hang or a lack of memory costs only the part it happens in, and that one keeps what it had measured.  What a
part does not use goes to the later ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import results
import torch
import typer

ROOT = Path(__file__).resolve().parent.parent
LEAST = 5.0  # seconds under which a part is not begun: importing torch takes as long
OWN = 0.8  # of its limit a part begins new measurements; the rest is for ending the last one
GRACE = 2.0  # seconds between being asked to end, when a part says where it hangs, and being killed
NEWS = 15.0  # seconds between two lines about a part that runs
TAIL = 12000  # bytes of a failed part's output that are kept
# A group to be killed whole, but no new session: whatever ends this process's session ends the part too.
GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part to run.

    Attributes:
        name: what it is called in the summary.
        share: of the time, relative to the other parts' shares.
        command: what runs it.
        stem: its JSON is ``<stem>.json``, or ``<stem>.partial.json`` as long as it is not done.
        timed: whether it takes ``--seconds``, after which it begins no new measurement.
    """

    name: str
    share: float
    command: list[str]
    stem: str
    timed: bool = True


def run_all(
    parts: list[Part],
    seconds: float,
    folder: Path,
    env: dict[str, str],
    write: Callable[[dict[str, dict[str, Any]]], object],
) -> int:
    """Runs the parts within ``seconds`` in all; returns 0, 1 if a part failed or timed out, 130 after Ctrl-C.

    Args:
        folder: where the parts write their JSON.
        env: the parts' environment.
        write: called first and after every part with the summary, by the parts' names: status ("ok", "failed",
            "timed out", "skipped", "interrupted") and reason, seconds and limit, the name of the JSON it wrote, and,
            unless it went well, the last lines of its output.
    """
    until = time.monotonic() + seconds
    summary: dict[str, dict[str, Any]] = {p.name: {"status": "skipped", "reason": "not reached"} for p in parts}
    try:
        write(summary)
        for index, part in enumerate(parts):
            left = until - time.monotonic()
            limit = left * part.share / sum(p.share for p in parts[index:])
            say(f"{index + 1}/{len(parts)} {part.name}: up to {limit:.0f} s, {left:.0f} s left in all")
            if limit < LEAST:
                summary[part.name]["reason"] = "out of time"
            else:
                run(part, limit, folder, env, summary[part.name])
            say(f"{index + 1}/{len(parts)} {part.name}: {summary_of(summary[part.name])}")
            write(summary)
    except KeyboardInterrupt:
        say("interrupted; what was measured is kept")
        write(summary)
        return 130
    return int(any(record["status"] in ("failed", "timed out") for record in summary.values()))


def run(part: Part, limit: float, folder: Path, env: dict[str, str], record: dict[str, Any]) -> None:
    """Runs one part and writes into ``record`` how it went, also when Ctrl-C ends it."""
    command = [*part.command, *(["--seconds", f"{OWN * limit:.0f}"] if part.timed else [])]
    began, clock = time.monotonic(), time.time()
    record.clear()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command, env={**env, "PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, **GROUP,
        )  # fmt: skip
        record |= {"status": "interrupted", "reason": "Ctrl-C"}
        try:
            record |= ended(follow(part.name, child, limit, log))
        finally:
            stop(child)
            files = [folder / f"{part.stem}{end}" for end in (".json", ".partial.json")]
            written = [path.name for path in files if path.exists() and path.stat().st_mtime >= clock - 0.1]
            record |= {
                "seconds": round(time.monotonic() - began, 1), "limit": round(limit, 1),
                "json": written[0] if written else None,
            }  # fmt: skip
            if record["status"] != "ok":
                record["last_lines"] = last(log)


def follow(name: str, child: subprocess.Popen, limit: float, log: IO[bytes]) -> int | None:
    """The exit status of a part, None if it reached its limit.  Says now and then how far it is."""
    began = time.monotonic()
    while (used := time.monotonic() - began) < limit:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(min(NEWS, limit - used))
        if used + NEWS < limit:
            latest = (last(log) or ["silent"])[-1][:150]
            say(f"    {name}: {time.monotonic() - began:.0f} of {limit:.0f} s; {latest}")
    return None


def ended(code: int | None) -> dict[str, str]:
    """The status of a part that ended so, and why."""
    if code == 0:
        return {"status": "ok", "reason": ""}
    if code is None:
        return {"status": "timed out", "reason": "not done within its limit"}
    return {"status": "failed", "reason": f"exit status {code}" if code > 0 else str(signal.strsignal(-code))}


def stop(child: subprocess.Popen) -> None:
    """Ends a part and whatever it started: asked first, which makes a part of the suite say where it is."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        # One that a driver holds cannot even be killed; it must not hold up the others.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)


def last(log: IO[bytes]) -> list[str]:
    """The last lines of what was written, read without moving the place that the part writes at."""
    size = os.fstat(log.fileno()).st_size
    text = os.pread(log.fileno(), TAIL, max(0, size - TAIL)).decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def summary_of(record: dict[str, Any]) -> str:
    """A record in a line, and below it the last lines of what did not go well."""
    where = f", {record['json']}" if record.get("json") else ""
    reason = f" ({record['reason']})" if record["reason"] else ""
    took = f" after {record['seconds']:.1f} of {record['limit']:.0f} s" if "seconds" in record else ""
    return "\n    | ".join([f"{record['status']}{reason}{took}{where}", *record.get("last_lines", [])[-20:]])


def say(line: str) -> None:
    print(line, flush=True)


# -- what a part measures ----------------------------------------------------------------------------------------------


def gpu() -> str:
    """The GPU as folders name it, such as "h100": the first word with a digit of "NVIDIA H100 80GB HBM3"."""
    words = torch.cuda.get_device_name().lower().split()
    return next((word for word in words if any(c.isdigit() for c in word)), words[-1])


def target(dry: bool, out: Path | None) -> tuple[str, Path]:
    """The device, as results name it, and the folder that the options say."""
    device = "cpu" if dry or not torch.cuda.is_available() else gpu()
    return device, out or (ROOT / "out" / "dry" if dry else results.BENCH / "results" / device)


def write(name: str, payload: dict[str, Any], dry: bool, out: Path | None) -> Path:
    """Writes a JSON there."""
    device, folder = target(dry, out)
    return results.write(name, payload, device, "python bench/gpu_suite.py " + " ".join(sys.argv[1:]), folder)


class Measured:
    """A part's figures, saved as they come, so that whatever ends the part early leaves what it had.

    Until the part is done they are in ``<part>.partial.json``: an earlier whole one stays until there is another.
    """

    def __init__(self, part: str, dry: bool, out: Path | None, **payload: Any):
        self.part, self.dry, self.out = part, dry, out
        self.payload: dict[str, Any] = {**payload, "failed": {}}

    def save(self) -> None:
        write(f"{self.part}.partial", self.payload, self.dry, self.out)

    @contextlib.contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Saves what was measured inside; an error is written down under ``what``, and the next has its turn."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.payload["failed"][what] = f"{type(error).__name__}: {error}"[-1500:]
        self.save()
        print(f"{what}: {self.payload['failed'].get(what, 'saved')}", flush=True)

    def done(self) -> None:
        """Writes the whole JSON and prints it; exits with 1 if something failed."""
        path = write(self.part, self.payload, self.dry, self.out)
        path.with_name(f"{self.part}.partial.json").unlink(missing_ok=True)
        print(json.dumps(self.payload, indent=1)[-6000:])
        print(f"written to {path}")
        if self.payload["failed"]:
            raise typer.Exit(1)
