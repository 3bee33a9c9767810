"""pytest in a child process, read along: a run that is killed has all its results until then.

There this file is a plugin (``-p pytest_lines``), which writes a line of JSON as each test begins and ends; here
``run`` reads them.  A test that ends the process, or leaves a GPU on which every later call fails, is one failed test:
the others go on in another process.  When the time is over the tests that are left are not run, and counted as such.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LINES, SECONDS = "VACCEL_TEST_LINES", "VACCEL_TEST_SECONDS"  # what tells the plugin where and how long
LATE = "out of time"
NEWS = 2.0  # seconds between two looks at the lines
#: Errors after which a process can do nothing more on its GPU, the status it then ends with, and how often it is
#: begun again: each costs as long as importing torch, and kernels that fail so often need no more proof.
STICKY = ("illegal memory access", "misaligned address", "illegal instruction", "device-side assert", "launch failure")
POISONED, AGAIN = 77, 10
#: The benchmarks' shapes that come first: of what an op does every step, the usual latents and hidden states.
FIRST = ("Wan 480p, latents", "Wan 14B 480p, hidden states")


def run(
    arguments: list[str], cwd: Path, env: dict[str, str], seconds: float, keep: Callable[[list[dict], int | None], None]
) -> int:
    """Runs ``pytest arguments`` and returns its exit status, that of a failure where a test had to end it.

    Args:
        seconds: no test is begun after so long.
        keep: called with all lines so far and None, every ``NEWS`` where there are new ones, and at last with the exit
            status.
    """
    here = os.pathsep.join(p for p in (env.get("PYTHONPATH"), str(Path(__file__).parent)) if p)
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_lines", *arguments]
        for _ in range(AGAIN + 1):
            left = {SECONDS: str(until - time.monotonic())}
            code = follow(command, cwd, {**env, "PYTHONPATH": here, LINES: str(lines), **left}, lines, keep)
            guilty = counted(read(lines))["unfinished"] if code < 0 else None
            if guilty:
                say(lines, test=guilty, outcome="failed", message=f"it ended pytest: {signal.strsignal(-code)}")
            elif code != POISONED:
                break
        else:
            say(lines, test="the tests that are left", outcome="error", message=f"not run after {AGAIN + 1} processes")
        said = read(lines)
        code = 1 if counted(said)["failed"] else code
        keep(said, code)
    return code


def follow(
    command: list[str], cwd: Path, env: dict[str, str], lines: Path, keep: Callable[[list[dict], int | None], None]
) -> int:
    """The exit status of pytest; until it ends ``keep`` has what there is."""
    count = 0
    with subprocess.Popen(command, cwd=cwd, env=env) as child:
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(NEWS)
            if len(said := read(lines)) > count:
                count = len(said)
                keep(said, None)
    return child.returncode


def say(path: Path, **line: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines that are written to their end."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def counted(said: list[dict[str, Any]]) -> dict[str, Any]:
    """How many tests ended in which way, what the failed ones said, and the one that has not come to its end."""
    ended = {line["test"]: line["outcome"] for line in said if "outcome" in line}
    failed = {line["test"]: line["message"] for line in said if "message" in line}
    begun = [line["began"] for line in said if "began" in line]
    outcomes = Counter(ended.values())
    return {
        "tests": len(ended), "passed": outcomes["passed"], "failures": outcomes["failed"], "errors": outcomes["error"],
        "skipped": outcomes["skipped"], "not_run": outcomes[LATE],
        "unfinished": next((test for test in begun if test not in ended), None), "failed": failed,
    }  # fmt: skip


def benchmarks(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As pytest-benchmark's JSON has them, of its statistics the median and the quartiles (seconds)."""
    return [line for line in said if "stats" in line]


def worth(item: pytest.Item) -> tuple[bool, int]:
    """Where an item comes in the order: as collected, but for benchmarks: ``FIRST``, and last what is slow to begin."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    shape = given.get("shape")
    return given.get("contender") == "compiled", FIRST.index(shape) if shape in FIRST else len(FIRST)


class Lines:
    """The plugin."""

    def __init__(self, path: Path, seconds: float):
        self.until, self.say = time.monotonic() + seconds, functools.partial(say, path)
        self.over = {line["test"] for line in read(path) if "test" in line}  # in the processes before
        self.poisoned = False

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid not in self.over), key=worth)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.say(test=report.nodeid, outcome="error", message=report.longreprtext[-1500:])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.say(began=nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if self.poisoned:
            pytest.exit("the GPU takes no more calls from this process", POISONED)
        if time.monotonic() > self.until:
            pytest.skip(LATE)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            outcome = "failed" if report.when == "call" else "error"
            self.say(test=report.nodeid, outcome=outcome, message=report.longreprtext[-1500:])
            self.poisoned = self.poisoned or any(error in report.longreprtext for error in STICKY)
        elif report.skipped:
            late = isinstance(report.longrepr, tuple) and report.longrepr[2].endswith(LATE)
            self.say(test=report.nodeid, outcome=LATE if late else "skipped")
        elif report.when == "call":
            self.say(test=report.nodeid, outcome="passed")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        benchmark = getattr(item, "funcargs", {}).get("benchmark")
        if getattr(benchmark, "stats", None):
            stats = {name: getattr(benchmark.stats.stats, name) for name in ("median", "q1", "q3")}
            self.say(extra_info=benchmark.extra_info, stats=stats)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Lines(Path(os.environ[LINES]), float(os.environ[SECONDS])), "vaccel lines")
