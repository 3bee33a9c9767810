"""Jobs killed at random moments and run again: what differs from an uninterrupted run, what is left, what is repeated.

One process imports everything once; each run is a fork of it, with one thread, its own temporary folder and its own
cache.  The model's forwards are counted in a file, so a killed run's count too.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vaccel.planning import leftovers

#: Most kills of one try; the run after them is let be.
MOST_KILLS = 4


@dataclasses.dataclass(frozen=True)
class Job:
    """A job that the same call resumes.

    Args:
        name: of the job.
        run: writes into a folder, in a process of its own; raises where it fails.
        units: how many pieces of work a run consists of; a kill may repeat the one in progress.
        counted: "module:Class.method" of the calls that are counted, of the model or of the VAE.
        varying: parts of the names of the fields of its JSON that differ from run to run, such as times.
        unlike: suffixes of files whose contents are not compared.
    """

    name: str
    run: Callable[[Path], Any]
    units: int = 1
    counted: tuple[str, ...] = ("diffusers:WanTransformer3DModel.forward",)
    varying: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()


class Run:
    """One run of a function in a fork, in ``place``: "work" is its folder, beside it what is watched."""

    def __init__(
        self,
        function: Callable[[Path], Any],
        place: Path,
        counted: Iterable[str] = (),
        environment: dict[str, str] | None = None,
    ):
        for name in ("work", "temporary", "cache"):
            (place / name).mkdir(parents=True, exist_ok=True)
        self.place, self.began = place, time.monotonic()
        self.log = place / f"log-{time.monotonic_ns()}.txt"
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._in_the_child(function, counted, environment or {})

    def _in_the_child(
        self, function: Callable[[Path], Any], counted: Iterable[str], environment: dict[str, str]
    ) -> None:
        status = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(environment)
            os.environ["XDG_CACHE_HOME"], os.environ["TMPDIR"] = (
                str(self.place / "cache"),
                str(self.place / "temporary"),
            )
            tempfile.tempdir = str(self.place / "temporary")
            for name in counted:
                _count(name, self.place / "forwards")
            function(self.place / "work")
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def ended(self, within: float | None = None) -> int | None:
        """The exit status once it has ended; None where it still runs after ``within`` seconds."""
        deadline = None if within is None else time.monotonic() + within
        while True:
            pid, status = os.waitpid(self.pid, 0 if deadline is None else os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.001)

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return self.ended()

    def said(self) -> str:
        """The last line that it printed."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""


def _count(name: str, file: Path) -> None:
    """Has every call of a method append a byte to a file."""
    module, _, path = name.partition(":")
    owner, method = path.split(".")
    kind = getattr(sys.modules[module], owner)
    plain, counter = getattr(kind, method), os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @functools.wraps(plain)
    def counting(*args: Any, **kwargs: Any) -> Any:
        os.write(counter, b".")
        return plain(*args, **kwargs)

    setattr(kind, method, counting)


def forwards(place: Path) -> int:
    """Counted calls of all runs in a place."""
    file = place / "forwards"
    return file.stat().st_size if file.exists() else 0


# --- what a run leaves ------------------------------------------------------------------------------------------


def contents(place: Path, varying: tuple[str, ...] = (), unlike: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the files of a run hold, by name, without the fields that vary from run to run."""
    folder, found = place / "work", {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix in unlike:
            found[name] = "there"
        elif path.suffix == ".json":
            found[name] = _plain(json.loads(path.read_text()), varying)
        elif path.suffix == ".jsonl":
            found[name] = [_plain(json.loads(line), varying) for line in path.read_text().splitlines()]
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _plain(value: Any, varying: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        sealed = varying and isinstance(value.get("digest"), str)  # of what varies too
        kept = {
            k: v for k, v in value.items() if not any(part in k for part in varying) and not (sealed and k == "digest")
        }
        return {k: _plain(v, varying) for k, v in kept.items()}
    return [_plain(v, varying) for v in value] if isinstance(value, list) else value


def difference(one: Any, two: Any, at: str = "") -> str | None:
    """The first place where two contents differ; None where they are equal."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in [*one, *(k for k in two if k not in one)]:
            if key not in one or key not in two:
                return f"{at}/{key} is in one alone"
            if (found := difference(one[key], two[key], f"{at}/{key}")) is not None:
                return found
        return None
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return next(
            (d for i, (a, b) in enumerate(zip(one, two, strict=True)) if (d := difference(a, b, f"{at}[{i}]"))), None
        )
    return None if one == two or (one != one and two != two) else f"{at}: {str(one)[:60]} and {str(two)[:60]}"


def left(place: Path) -> list[str]:
    """Files by whose names something was left behind, and everything in the temporary folder."""
    beside = [p for name in ("work", "cache") for p in (place / name).rglob("*") if p.is_file()]
    found = [str(p.relative_to(place)) for p in beside if leftovers.recognised(p, set()) is not None]
    return sorted(found + [str(p.relative_to(place)) for p in (place / "temporary").iterdir()])


# --- tries -----------------------------------------------------------------------------------------------------------


def tries(job: Job, base: Path, count: int, *, seed: int = 0, again: float = 0.3) -> dict[str, Any]:
    """Kills a job ``count`` times at moments uniform over an uninterrupted run, and runs it to its end each time.

    Args:
        base: an empty folder.
        again: the probability that a run after a kill is killed too.

    Returns plain data: tries, kills, how many failed, differed, left files behind or repeated more than their unit.
    """
    rng, whole = random.Random(seed), base / "whole"
    for place in (base / "warm", whole):  # the first one fills the page cache
        run = Run(job.run, place, job.counted)
        if run.ended() != 0:
            raise RuntimeError(f"{job.name} fails when nothing interrupts it: {run.said()}")
        duration = time.monotonic() - run.began
    expected, plain = contents(whole, job.varying, job.unlike), forwards(whole)
    unit = -(-plain // job.units)
    found: dict[str, Any] = {
        "job": job.name, "tries": count, "kills": 0, "ended before a kill": 0, "failed": [], "different": [],
        "left behind": [], "repeated": [], "forwards": plain, "unit": unit, "over the unit": 0,
        "seconds": round(duration, 3),
    }  # fmt: skip
    for number in range(count):
        place = base / f"try-{number}"
        kills, status, said = _one_try(job, place, duration, rng, again)
        found["kills"] += kills
        found["ended before a kill"] += kills == 0
        if status != 0:
            found["failed"].append(f"try {number}: {said}")
        elif (where := difference(expected, contents(place, job.varying, job.unlike))) is not None:
            found["different"].append(f"try {number}: {where}")
        if names := left(place):
            found["left behind"].append(f"try {number}: {', '.join(names)}")
        repeated = forwards(place) - plain
        found["repeated"].append(repeated)
        found["over the unit"] += repeated > kills * unit
        shutil.rmtree(place)
    return found


def _one_try(job: Job, place: Path, duration: float, rng: random.Random, again: float) -> tuple[int, int, str]:
    """(kills, exit status of the last run, its last line)."""
    kills = 0
    while True:
        run = Run(job.run, place, job.counted)
        if kills and (kills >= MOST_KILLS or rng.random() >= again):
            return kills, run.ended(), run.said()
        status = run.ended(rng.uniform(0, duration))
        if status is not None:
            return kills, status, run.said()
        run.kill()
        kills += 1


def together(
    name: str, one: Callable[[Path], Any], two: Callable[[Path], Any], reference: Callable[[Path], Any], base: Path,
    count: int, *, ranks: bool = False, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Two processes on one artifact: whether it holds all samples, each once and as in ``reference``'s run.

    Args:
        one, two: what they run; ``two`` begins up to a run's duration after ``one``.
        reference: the same work in one process.
        ranks: start them at once, as ranks 0 and 1 of ``torchrun`` (gloo).
    """
    rng = random.Random(seed)
    run = Run(reference, base / "whole")
    if run.ended() != 0:
        raise RuntimeError(f"{name} fails in one process: {run.said()}")
    duration, expected = time.monotonic() - run.began, _samples(base / "whole")
    found: dict[str, Any] = {"job": name, "tries": count, "failed": [], "different": [], "left behind": []}
    for number in range(count):
        place, environments = base / f"try-{number}", _ranks() if ranks else [{}, {}]
        runs = [Run(one, place, environment=environments[0])]
        time.sleep(0 if ranks else rng.uniform(0, duration))
        runs.append(Run(two, place, environment=environments[1]))
        for run in runs:
            status = run.ended(60 + 20 * duration)
            if status != 0:
                found["failed"].append(f"try {number}: {run.said() if status is not None else 'hangs'}")
            if status is None:
                run.kill()
        if (where := difference(expected, _samples(place))) is not None:
            found["different"].append(f"try {number}: {where}")
        if names := left(place):
            found["left behind"].append(f"try {number}: {', '.join(names)}")
        shutil.rmtree(place)
    return found


def _ranks() -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def _samples(place: Path) -> dict[str, Any]:
    """The samples of every artifact in a place."""
    found = {}
    for path in sorted((place / "work").rglob("*.json")):
        found[path.name] = _plain(json.loads(path.read_text()).get("samples", {}), ("seconds",))
    return found
