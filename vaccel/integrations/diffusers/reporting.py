"""A run is over: its report goes to the log and to who asked for it."""

from __future__ import annotations

import itertools
import logging
import time
import traceback
from typing import Any

from ...engine.report import RunReport, log, tell
from ...engine.run import Run
from . import ownership
from .auto import durations


def observed(session: Any) -> bool:
    """Whether anybody wants to know of its runs."""
    return bool(session.observers) or log.isEnabledFor(logging.INFO)


def report(scope: Any, error: BaseException | None = None) -> None:
    """Of the scope's run, which is over; ``error`` has ended the call.  Never raises."""
    run = scope.run
    if not isinstance(run, Run) or run.index < 0:
        return
    failed = ""
    if error is not None and not run.trace.finished:
        failed = type(error).__name__
        hint(run, error)
    if not scope.observed:
        return
    seconds, times = time.perf_counter() - scope.began, None
    if len(scope.marks) == len(run.trace.steps) + 1:
        times = tuple(durations(scope.marks))
    name = ownership.base_of(scope.pipe).__name__
    tell(RunReport(name, run.trace, seconds, times, failed), scope.session.observers)


#: What a loop raises over values that are not as it expects them.
_UNEXPECTED = (RuntimeError, LookupError, AttributeError, TypeError, ValueError)


def hint(run: Run, error: BaseException) -> None:
    """Adds a note to an error of the pipeline's own loop, beside its model's calls, in a run that has skipped steps."""
    if not isinstance(error, _UNEXPECTED) or not hasattr(error, "add_note"):  # from Python 3.11 on
        return
    skipped = next((step.index for step in run.trace.steps if not step.action.is_full), None)
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    ours = (frame.f_globals.get("__name__", "").startswith("vaccel.") for frame in itertools.islice(frames, 1, None))
    if skipped is not None and not any(ours):
        error.add_note(
            f"vaccel did not compute step {skipped} of this run: what the pipeline reads inside its model (attention "
            "maps, hidden states) is of an earlier step then. If the call works under handle.using(None), without "
            "vaccel, this pipeline cannot be accelerated."
        )
