"""What is printed: the console, progress bars, and errors as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()


def progress_bar() -> Progress:
    """A progress bar with counts, elapsed and remaining time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


def refuse(error: Exception) -> NoReturn:
    """Prints the error as one line instead of a traceback and exits with status 2."""
    console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


@contextlib.contextmanager
def clear_errors(interrupted: str) -> Iterator[None]:
    """Errors of the user's input end in one line (status 2); Ctrl-C in ``interrupted``, what is kept (status 130)."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"stopped; {interrupted}")
        raise typer.Exit(130) from None
    except (ValueError, OSError, FloatingPointError) as error:
        refuse(error)
