"""A run is over: its report goes to the log and to who asked for it."""

from __future__ import annotations

import logging
import time
from typing import Any

from ...engine.report import RunReport, log, tell
from ...engine.run import Run
from . import ownership
from .auto import durations


def observed(session: Any) -> bool:
    """Whether anybody wants to know of its runs."""
    return bool(session.observers) or log.isEnabledFor(logging.INFO)


def report(scope: Any, kind: type[BaseException] | None = None) -> None:
    """Of the scope's run, which is over; ``kind`` is of the exception that ended the call.  Never raises."""
    run = scope.run
    if not isinstance(run, Run) or run.index < 0 or not scope.observed:
        return
    error = kind.__name__ if kind is not None and not run.trace.finished else ""
    seconds, times = time.perf_counter() - scope.began, None
    if len(scope.marks) == len(run.trace.steps) + 1:
        times = tuple(durations(scope.marks))
    name = ownership.base_of(scope.pipe).__name__
    tell(RunReport(name, run.trace, seconds, times, error), scope.session.observers)
