"""Files that a killed process leaves behind: recognised by their names, described, and removed where nothing uses them.

Without torch, so that ``vaccel doctor --leftovers`` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..extras import needed
from .files import SLACK, alive, host

with needed("looking for leftovers"):
    import psutil

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Folders below which nothing of vaccel's is looked for.
_SKIPPED = {".git", ".venv", "__pycache__", "node_modules"}
#: Levels of folders that are looked into.
_DEEP = 4

_PARTIAL = re.compile(r"(?P<of>.+)\.(?:(?P<host>\w+)-)?(?P<pid>[0-9]+)-[0-9a-zA-Z_]+\.partial(?:\.\w+)?")
_OLD_PARTIAL = re.compile(r"(?P<of>.+\.(?:json|jsonl|safetensors|html|png|partial))\.partial")
_PART = re.compile(r"(?P<of>.+\.json)\.part(?P<rank>[0-9]+)")
_RECORD = re.compile(r"(?P<of>.+)\.(?P<key>[0-9a-zA-Z_-]+)\.record\.safetensors")
_OLD_RECORD = re.compile(r"(?P<of>.+\.json)\.(?P<key>[0-9a-f]{12}-[0-9]+)\.safetensors")
_LOCK = re.compile(r"(?P<of>.+)\.lock")
_OURS = (".json", ".jsonl", ".safetensors", ".html")


@dataclasses.dataclass(frozen=True)
class Leftover:
    """A file or folder that may have been left behind.

    Attributes:
        path: where it is.
        kind: "partial file", "torchrun part", "LeMiCa record", "lock" or "parked weights".
        of: the path that it belongs to.
        nbytes: its size.
        used: whether a running process may still use it.
        resumable: whether an interrupted calibration goes on from it.
    """

    path: Path
    kind: str
    of: Path
    nbytes: int
    used: bool = False
    resumable: bool = False

    def remove(self) -> bool:
        """Deletes it, unless it is in use by now; says whether it did."""
        if self.kind == "lock":
            return _remove_lock(self.path)
        if _in_use(self.path, self.kind, self.of, _opened()):
            return False
        if self.path.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)
        return not self.path.exists()


def cache_folder() -> Path:
    """The folder of what vaccel keeps between processes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaccel"


def find(folders: Iterable[Path]) -> list[Leftover]:
    """What is left behind in the folders and below, vaccel's cache and Python's temporary folder, by path.

    Raises ``ValueError`` for a folder that is not there.
    """
    folders, opened = list(folders), _opened()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"no folder at {folder}: give one that vaccel wrote into")
    found: dict[Path, Leftover] = {}
    for folder in [*folders, cache_folder()]:
        for path in _files(folder):
            if (leftover := recognised(path, opened)) is not None:
                found[path.resolve()] = leftover
    for path in sorted(Path(tempfile.gettempdir()).glob("vaccel-*")):
        if (leftover := _parked(path, opened)) is not None:
            found[path.resolve()] = leftover
    return [found[path] for path in sorted(found)]


def sweep(*folders: Path) -> None:
    """Deletes the partial files in these folders, not below, that no running process uses."""
    for folder in folders:
        partial = [p for p in folder.glob("*.partial") if not p.is_symlink()]
        for found in filter(None, (recognised(path) for path in partial)):
            if found.kind == "partial file" and not found.used:
                shutil.rmtree(found.path) if found.path.is_dir() else found.path.unlink(missing_ok=True)


def recognised(path: Path, opened: set[tuple[int, int]] | None = None) -> Leftover | None:
    """What a file's name says that it is; None where it is none of vaccel's temporary files.

    Args:
        path: of an existing file.
        opened: (device, inode) of the files that running processes have open; looked up if not given.
    """
    for pattern, kind in (
        (_PARTIAL, "partial file"), (_OLD_PARTIAL, "partial file"), (_PART, "torchrun part"),
        (_RECORD, "LeMiCa record"), (_OLD_RECORD, "LeMiCa record"), (_LOCK, "lock"),
    ):  # fmt: skip
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        if pattern is not _PARTIAL and path.is_dir():
            return None
        of = path.with_name(match["of"])
        ours = kind == "lock" and of.suffix in _OURS
        if pattern in (_OLD_RECORD, _LOCK) and not (ours or of.is_file()):
            return None  # nothing says that it is ours
        try:
            inner = list(path.iterdir()) if path.is_dir() else [path]
            nbytes = sum(each.lstat().st_size for each in inner)
        except OSError:  # gone in the meantime
            return None
        used = _in_use(path, kind, of, _opened() if opened is None else opened)
        unfinished = kind in ("torchrun part", "LeMiCa record") and not _finished(path, kind, of, match)
        return Leftover(path, kind, of, nbytes, used, unfinished)
    return None


def _files(folder: Path) -> Iterator[Path]:
    """Plain files and partial folders of a folder and of those below; links are not followed."""
    root = len(folder.parts)
    for at, folders, names in os.walk(folder):
        deep = len(Path(at).parts) - root >= _DEEP
        own = {name for name in folders if _PARTIAL.fullmatch(name)}  # safetensors on their way
        yield from (Path(at, name) for name in sorted(own))
        folders[:] = [] if deep else sorted(set(folders) - _SKIPPED - own)
        for name in sorted(names):
            if ".part" in name or name.endswith((".lock", ".safetensors")):
                path = Path(at, name)
                if path.is_file() and not path.is_symlink():
                    yield path


def _parked(path: Path, opened: set[tuple[int, int]]) -> Leftover | None:
    """A folder of a transformer's own weights, which earlier versions parked under a name."""
    file = path / "original.safetensors"
    try:
        if path.is_symlink() or not file.is_file() or sorted(p.name for p in path.iterdir()) != [file.name]:
            return None
        kind = "parked weights"
        return Leftover(path, kind, path, file.stat().st_size, _in_use(path, kind, path, opened))
    except OSError:  # gone, or another user's
        return None


# --- who uses them ---------------------------------------------------------------------------------------------------


def _in_use(path: Path, kind: str, of: Path, opened: set[tuple[int, int]]) -> bool:
    """Whether a running process may still need a file; in doubt it may."""
    try:
        status = path.stat()
    except OSError:
        return False
    if kind == "lock":
        return _locked(path)
    if kind == "parked weights":  # they carry no process id, and are not kept open
        return any(_may_have_parked(process, status.st_mtime) for process in psutil.process_iter())
    if (status.st_dev, status.st_ino) in opened or _locked(of.with_name(of.name + ".lock")):
        return True
    match = _PARTIAL.fullmatch(path.name)
    if match is None:
        return False
    elsewhere = match["host"] not in (None, host())  # on a shared disk: its processes cannot be seen from here
    return elsewhere or alive(int(match["pid"]), status.st_mtime)


def _may_have_parked(process: psutil.Process, made: float) -> bool:
    """Whether it is a Python of this user that ran when a file was made."""
    try:
        ours = not hasattr(os, "getuid") or process.uids().real == os.getuid()
        old = process.create_time() <= made + SLACK and process.status() != psutil.STATUS_ZOMBIE
        return (
            ours and old and process.pid != os.getpid() and "python" in " ".join([process.name(), *process.cmdline()])
        )
    except (psutil.Error, OSError):
        return False


def _opened() -> set[tuple[int, int]]:
    """(device, inode) of the files that other running processes have open, as far as they can be seen."""
    found = set()
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        folder = Path(f"/proc/{process.pid}/fd")
        with contextlib.suppress(psutil.Error, OSError):
            paths = list(folder.iterdir()) if folder.is_dir() else [Path(f.path) for f in process.open_files()]
            for path in paths:
                with contextlib.suppress(OSError):
                    status = path.stat()
                    found.add((status.st_dev, status.st_ino))
    return found


def _locked(path: Path) -> bool:
    """Whether a process holds the lock of a lock file."""
    if fcntl is None or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # not to be read, or no such locks there: in doubt it is held
        return True
    return False


def _remove_lock(path: Path) -> bool:
    """Deletes a lock file while holding its lock, so that nobody takes it in between."""
    try:
        with path.open("rb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


# --- what they are of ------------------------------------------------------------------------------------------------


def _finished(path: Path, kind: str, of: Path, match: re.Match[str]) -> bool:
    """Whether all that a part or a record holds is in its artifact already."""
    samples = _samples(of)
    if kind == "torchrun part":
        own = _samples(path)
        return bool(own) and all(key in samples for key in own)
    sample = samples.get(match["key"])
    return isinstance(sample, dict) and sample.get("done") is True


def _samples(path: Path) -> dict[str, Any]:
    """The samples of an artifact; none where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["samples"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
