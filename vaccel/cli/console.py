"""What is printed: the console, progress, and errors as one line.

Texts of users (prompts, labels, paths, errors) may hold anything: the console reads no markup, and styles are given as
arguments.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..out_of_memory import out_of_memory

console = Console(markup=False, emoji=False)
#: Seconds between two lines of progress that say the same where there is no terminal.
PATIENCE = 30.0
#: The command that runs, for what an error says to type.
command = ""
#: What an error's text names that can be typed.
_TYPED = re.compile(
    r"`vaccel |vaccel (app|calibrate|compare|demo|distill|doctor|explain|export|generate)\b|pip install|python -m |--\w"
)


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


def refuse(error: Exception, status: int = 2, then: str = "") -> NoReturn:
    """Prints the error as one line instead of a traceback, and what to type next, and ends the command.

    That is what ``followed_by`` says of the error, what its text names itself, ``then``, or the command's help.
    """
    text = str(error) or type(error).__name__
    say(f"error: {text}", "red")
    given = getattr(error, "then", "")
    if given or not names_a_command(text):
        say(f"next: {given or then or ' '.join(filter(None, ('vaccel', command, '--help')))}")
    leave(status)


def names_a_command(text: str) -> bool:
    """Whether an error's text already says what to type."""
    return _TYPED.search(text) is not None


@contextlib.contextmanager
def followed_by(then: str) -> Iterator[None]:
    """Within the context an error of the user's input is to be followed by this command."""
    try:
        yield
    except (ValueError, OSError) as error:
        if not hasattr(error, "then") and not names_a_command(str(error)):
            error.then = then
        raise


def interrupted(error: KeyboardInterrupt, what: str) -> NoReturn:
    """Ends a command that was stopped; ``what`` says what is kept."""
    say(f"stopped; {what}", "yellow")
    leave(143 if isinstance(error, Terminated) else 130)


@contextlib.contextmanager
def clear_errors(kept: str, then: str = "") -> Iterator[None]:
    """Errors of the user's input end in one line (status 2), others that are no fault of ours too (status 1), such as a
    GPU's memory; Ctrl-C and SIGTERM in ``kept``, what is kept (status 130, 143).  ``then``: as in ``refuse``."""
    with terminable():
        try:
            yield
        except KeyboardInterrupt as error:
            interrupted(error, kept)
        except (ValueError, OSError, FloatingPointError) as error:
            refuse(error, then=then)
        except (MemoryError, RuntimeError) as error:
            if not (said := out_of_memory(error)):
                raise
            say(f"out of memory: {said}; {kept}", "red")
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
