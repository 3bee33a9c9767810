"""Where a distillation writes: checked before it begins, held by one process at a time, replaced in one move."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..experts.files import naming
from ..planning import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Seconds to wait for another process: a killed one's helpers may hold its folder for a moment longer.
PATIENCE = 10.0


def check_folder(folder: Path) -> None:
    """Raises ``ValueError`` where files could not be written into a folder; does not create it."""
    at = folder
    while not os.path.lexists(at) and at != at.parent:
        at = at.parent
    if not at.is_dir():
        what = "a link to nowhere" if at.is_symlink() and not at.exists() else "a file"
        raise ValueError(f"{folder} cannot be written into: {at} is {what}, not a folder; choose another folder")
    try:
        with tempfile.TemporaryFile(dir=at, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written into: {error.strerror or error} ({at}); choose another folder, or make room"
        ) from None


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file in one move; creates its folder.  Raises ``OSError`` that names the file."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as partial:
            partial.write_bytes(content)


def append(file: IO[bytes], content: bytes) -> None:
    """Writes all of it to a file without a buffer, which may take a part at a time."""
    while content:
        content = content[file.write(content) :]


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing into a folder; the kernel lets go of it however this one ends.

    The folder itself is locked, so nothing is left in it; what was made and stays empty is removed again.  Raises
    ``ValueError`` where another process holds it, and the errors of creating a folder.
    """
    new = [at for at in (folder, *folder.parents) if not at.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if held is not None:
            _lock(held, folder)
        yield
    finally:
        if held is not None:
            os.close(held)
        with contextlib.suppress(OSError):  # it holds something by now
            for at in new:
                at.rmdir()


def _lock(held: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"another process is writing into {folder}: wait until it ends, or choose another folder"
                ) from None
            time.sleep(0.05)
        except OSError:  # a file system without such locks
            return


def check_counts(**counts: tuple[Any, int]) -> None:
    """Raises ``ValueError`` for a (value, least value) that is no whole number or too small."""
    for name, (value, least) in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
