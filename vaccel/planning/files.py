"""Files that several processes write: whole or not at all, one writer at a time, nothing left behind.

A file is written under a name of its own beside the one that it gets, ``NAME.<host>-<pid>-<random>.partial``, and takes
that one's place in one move.  A process that is killed leaves its partial file; the next writer of the same file on the
same host removes it.  Writers that read before they write hold ``NAME.lock`` meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

#: Seconds that a process may seem younger than a file it has made: clocks of processes and of files differ.
SLACK = 2.0
#: Seconds that a writer waits for another one of the same file: a write takes milliseconds.
PATIENCE = 60.0


def host() -> str:
    """This machine's name, as it stands in partial files' names."""
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())


def temporary(path: Path, suffix: str = "") -> Path:
    """A name beside ``path`` that no other process takes, for a file that will replace it."""
    return path.with_name(f"{path.name}.{host()}-{os.getpid()}-{secrets.token_hex(4)}.partial{suffix}")


@contextlib.contextmanager
def replacing(path: str | Path, suffix: str = "", *, folder: bool = False) -> Iterator[Path]:
    """A new, empty file to be written within the context, which then takes the place of ``path`` in one move.

    Its name ends in ``suffix``, for writers that go by it; with ``folder`` it is to be made in a folder of its own, for
    writers that make others beside it.

    After an exception the old file is as it was and the new one is gone.
    """
    path = Path(path)
    sweep(path)
    partial = holder = temporary(path, suffix)
    try:
        if folder:
            holder.mkdir()
            partial = holder / f"file{suffix}"
        else:
            partial.touch()
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        _remove(holder)


def _remove(path: Path) -> None:
    """Deletes a file, or a folder with what is in it."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            os.unlink(path)


def check(path: str | Path) -> None:
    """Makes the folder of a file that is to be written.

    Raises ``ValueError`` for a folder, and ``OSError`` where the file could not be written.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = temporary(path)
        probe.touch()
        os.unlink(probe)
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror or error}") from None


def write_text(path: str | Path, text: str) -> None:
    """Replaces a file by one with this text."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sweep(path: str | Path) -> None:
    """Removes what killed writers of ``path`` have left on this host."""
    path = Path(path)
    for left in partials(path):
        _remove(left)


def settle(path: str | Path) -> None:
    """Removes what killed writers of ``path`` have left, their lock too; its folder must exist."""
    with locked(path):
        sweep(path)


def partials(path: Path) -> list[Path]:
    """The partial files of ``path`` whose writers, processes of this host, are no more."""
    named = re.compile(re.escape(path.name) + rf"\.(?:{re.escape(host())}-(\d+)-[0-9a-f]+\.)?partial(?:\.\w+)?")
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            match = named.fullmatch(name)
            if match and not (match[1] and _in_use(path.with_name(name), int(match[1]))):
                found.append(path.with_name(name))
    return found


def _in_use(partial: Path, pid: int) -> bool:
    try:
        return alive(pid, partial.stat().st_mtime)
    except OSError:  # gone in the meantime
        return True


def alive(pid: int, made: float) -> bool:
    """Whether the process that made a file at ``made`` runs; a later one may have its number.

    Without psutil, which tells them apart, every process that runs counts.
    """
    try:
        import psutil
    except ImportError:
        return _runs(pid)
    try:
        process = psutil.Process(pid)
        return process.create_time() <= made + SLACK and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError, OverflowError):
        return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def locked(path: str | Path, patience: float = PATIENCE) -> Iterator[None]:
    """One process and thread at a time is in this context for a ``path``, whose folder must exist.

    Raises ``OSError`` where the folder cannot be written to or another process keeps the lock for ``patience`` seconds.
    """
    path = Path(path)
    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise TimeoutError(
            f"{path} has been locked by another process for {patience:g} s; if none is at work, delete {lock.lock_file}"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # whoever waits for it sees that it is gone, and makes a new one
            os.unlink(lock.lock_file)
        lock.release()
