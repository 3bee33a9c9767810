"""What runs on a cluster's machines: a process with one pipeline, which is told what to make in ``messages``.

It has no files of a driver's and writes none: clips and samples go back as bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .messages import Attached, Greeting, Reply, Setup, Task, failed, read, shown, write

#: What results depend on, beside the weights.
COMPARED = ("vaccel", "torch", "diffusers", "transformers")
#: Folders of workers, by process: one that was killed is removed by the next on its machine.
FOLDER = "vaccel-worker"


def versions() -> dict[str, str]:
    """Of the packages that results depend on: the public part, since a build for another GPU is no other version."""
    from .. import __version__

    found = {"vaccel": __version__}
    for name in COMPARED[1:]:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return {name: found.get(name, "none").partition("+")[0] for name in COMPARED}


class Worker:
    """One pipeline, and what is made with it.  Every method takes and returns bytes and raises nothing."""

    def __init__(self) -> None:
        self._doing: Any = None
        self._folder: Path | None = None

    def hello(self, nothing: bytes = b"") -> bytes:
        """A ``Greeting``."""
        try:
            return write(Reply(write(Greeting(versions(), shown(socket.gethostname(), 100)))))
        except Exception as error:
            return failed(error, "machine")

    def load(self, setup: bytes) -> bytes:
        """Loads what a ``Setup`` says; answers ``Ready``."""
        try:
            chosen = read(setup, Setup)
            _use_threads(chosen)
            files = self._attached(chosen.files)
            if chosen.what == "clips":
                from .clips import Clips as Doing
            else:
                from .units import Units as Doing
            self._doing = Doing(chosen, files)
            return write(Reply(write(self._doing.ready)))
        except (OSError, MemoryError) as error:
            return failed(error, "setup" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else "machine")
        except Exception as error:
            return failed(error, "setup")

    def work(self, task: bytes) -> bytes:
        """Makes what a ``Task`` says; a clip or a sample as ``clips`` and ``units`` have them."""
        try:
            return write(Reply(self._doing.make(read(task, Task))))
        except OSError as error:  # its disk, not the task
            return failed(error, "machine")
        except Exception as error:
            return failed(error, "task")

    def leave(self, nothing: bytes = b"") -> bytes:
        """Leaves nothing behind on its machine."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        return write(Reply())

    def _attached(self, files: list[Attached]) -> dict[str, str]:
        """Where the files are here, by their paths on the driver."""
        from ..planning.prior import shipped

        found = {}
        for number, file in enumerate(files):
            if file.content is None:
                found[file.path] = str(shipped())
                continue
            if self._folder is None:
                _sweep(Path(tempfile.gettempdir()))
                self._folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}-{os.getpid()}-"))
            place = self._folder / f"{number}.json"
            place.write_bytes(file.content)
            found[file.path] = str(place)
        return found


def _use_threads(setup: Setup) -> None:
    """Ray gives a process one thread; a pipeline on a CPU wants its share of the cores."""
    import torch

    torch.set_num_threads(setup.threads or max(1, len(os.sched_getaffinity(0)) // max(1, setup.share)))


def _sweep(where: Path) -> None:
    """Removes the folders of workers that were killed."""
    from ..planning import files

    for left in where.glob(f"{FOLDER}-*-*"):
        found = re.fullmatch(rf"{FOLDER}-(\d+)-\w+", left.name)
        with contextlib.suppress(OSError):
            if found and not files.alive(int(found[1]), left.stat().st_mtime):
                shutil.rmtree(left)
