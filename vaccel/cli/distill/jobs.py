"""Long work that ends cleanly: Ctrl-C and SIGTERM alike leave what is written whole, and say how to go on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import typer

from ..console import clear_errors


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a scheduler sends before it kills.  Handled as Ctrl-C is, with another exit status."""


@contextlib.contextmanager
def job(kept: str) -> Iterator[None]:
    """Errors of the user's input end in one line (status 2); Ctrl-C (130) and SIGTERM (143) in ``kept``.

    The process's own handler of SIGTERM is put back.  Later signals are ignored while what is open is closed.
    """
    stopped: list[int] = []
    with _terminable(stopped):
        try:
            with clear_errors(kept):
                yield
        except typer.Exit as ended:
            if stopped and ended.exit_code == 130:
                raise typer.Exit(143) from None
            raise


@contextlib.contextmanager
def _terminable(stopped: list[int]) -> Iterator[None]:
    """SIGTERM raises ``Terminated`` in this process, once; in its children it does what it did."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own, before = os.getpid(), signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a process that reads ahead
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        elif not stopped:
            stopped.append(number)
            raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
