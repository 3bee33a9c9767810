"""What is printed: the console, progress, and errors as one line.

Texts of users (prompts, labels, paths, errors) may hold anything: the console reads no markup, and styles are given as
arguments.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(markup=False, emoji=False)
#: Seconds between two lines of progress that say the same where there is no terminal.
PATIENCE = 30.0


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does."""


class Bar:
    """Progress of a long command: a bar on a terminal, plain lines elsewhere.  A context manager.

    Args:
        every: seconds between two plain lines at least, for work that says something else at every unit.
        patience: seconds after which the same is said again, with how much is done.
        visible: False for processes that are not to show any.
    """

    def __init__(self, *, every: float = 0.0, patience: float = PATIENCE, visible: bool = True) -> None:
        self.every, self.patience, self.visible = every, patience, visible
        self._bar: Progress | None = None
        self._said, self._last = "", -math.inf

    def __enter__(self) -> Bar:
        if self.visible and console.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=1)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, what: str) -> None:
        """``done`` of ``total`` units of work are done (0 where that is unknown), and ``what`` is being done."""
        what = " ".join(what.split())[:90]
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total or None, description=what)
            return
        waited = time.monotonic() - self._last
        due = waited > self.patience or (what != self._said and (waited >= self.every or done == total))
        if self.visible and due:
            self._said, self._last = what, time.monotonic()
            console.print(f"{done}/{total or '?'} {what}", highlight=False, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """A line as it is, broken nowhere."""
    console.print(text, style=style, highlight=False, soft_wrap=True)


def leave(status: int) -> NoReturn:
    """Ends the command: 1 where it failed or ended early, 2 for input that cannot be used, 130 for Ctrl-C, 143 for
    SIGTERM."""
    raise SystemExit(status)


def refuse(error: Exception, status: int = 2) -> NoReturn:
    """Prints the error as one line instead of a traceback and ends the command."""
    say(f"error: {error or type(error).__name__}", "red")
    leave(status)


def interrupted(error: KeyboardInterrupt, what: str) -> NoReturn:
    """Ends a command that was stopped; ``what`` says what is kept."""
    say(f"stopped; {what}", "yellow")
    leave(143 if isinstance(error, Terminated) else 130)


@contextlib.contextmanager
def clear_errors(kept: str) -> Iterator[None]:
    """Errors of the user's input end in one line (status 2), others that are no fault of ours too (status 1), such as a
    GPU's memory; Ctrl-C and SIGTERM in ``kept``, what is kept (status 130, 143)."""
    with terminable():
        try:
            yield
        except KeyboardInterrupt as error:
            interrupted(error, kept)
        except (ValueError, OSError, FloatingPointError) as error:
            refuse(error)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "out of memory" not in str(error):
                raise
            say(f"out of memory: {str(error).splitlines()[0] if str(error) else 'of the host'}; {kept}", "red")
            leave(1)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises ``Terminated`` within the context, so that what is begun is ended cleanly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    own, stopped = os.getpid(), []

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != own:  # a process that reads ahead
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        elif not stopped:  # later ones are ignored while what is open is closed
            stopped.append(number)
            raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
