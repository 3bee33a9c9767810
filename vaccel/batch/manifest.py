"""Which clips there are to be made, and which there are: a line of JSON each, in ``manifest.jsonl``."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from ..models import fingerprints
from ..planning import files, json_lines

#: Of a manifest that is read: a million clips of a long prompt each.
MOST_BYTES = 2**31
NAME = "manifest.jsonl"
#: What a whole batch locks; the manifest's own lock is for a line.
LOCKED = "batch.jsonl"


@dataclasses.dataclass(frozen=True)
class Job:
    """A clip to be made: its place in the list, from 0 on; its prompt; the seed of its noise."""

    number: int
    prompt: str
    seed: int


def jobs_of(prompts: Iterable[str], seed: int = 0) -> list[Job]:
    """A job for every prompt, all with the same seed; a prompt that comes twice has the next seed the second time."""
    found: list[Job] = []
    again: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        turn = again[prompt] = again.get(prompt, -1) + 1
        found.append(Job(number, prompt, seed + turn))
    return found


def header_of(pipe: Any, call: dict[str, Any], method: str, fps: int) -> dict[str, Any]:
    """What all clips of a folder are made by.

    Args:
        method: the key of its contender.
    """
    return {**fingerprints.header("", pipe, call), "method": method, "fps": fps}


def fingerprint_of(header: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of plain data that clips are made by."""
    text = json.dumps(header, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """One process at a time makes clips in a folder, which must exist: another would make the same ones.

    Raises ``ValueError`` where one is at it, ``OSError`` where the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(Path(folder) / LOCKED, patience=0))
        except TimeoutError:
            said = f"another process makes clips in {folder}: wait for it, or choose another folder"
            raise ValueError(said) from None
        yield


class Manifest:
    """The clips in a folder.

    A clip belongs to a prompt, a seed and a fingerprint of all else that it is made by.  Lines of other fingerprints
    stay in the file and count for nothing.

    Args:
        folder: of the clips.
        header: what all of them are made by, plain data; or its fingerprint.
        suffix: of the clips' files.

    Attributes:
        notes: in words, what was damaged.

    Raises ``ValueError`` for a file that is too large to be read, ``OSError`` where it cannot be.
    """

    def __init__(self, folder: str | Path, header: Mapping[str, Any] | str, suffix: str = ".mp4"):
        self.folder, self.path, self.suffix = Path(folder), Path(folder) / NAME, suffix
        self.fingerprint = header if isinstance(header, str) else fingerprint_of(header)
        self.notes: list[str] = []
        self._made: dict[tuple[str, int], dict[str, Any]] = {}
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        if (size := self.path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{self.path} is no manifest: it has {size} bytes, at most {MOST_BYTES} are read")
        damaged = 0
        for line in json_lines.read(self.path, ("prompt", "seed", "fingerprint")):
            damaged += line is None
            if line is not None and line["fingerprint"] == self.fingerprint and "file" in line:
                self._made[line["prompt"], line["seed"]] = line
        if damaged:
            self.notes.append(f"{damaged} damaged line(s) of {self.path}: those clips are made again")

    def name(self, job: Job) -> str:
        """The file of a job's clip, without its folder."""
        text = json.dumps([self.fingerprint, job.prompt, job.seed])
        return f"{job.number:05d}-{hashlib.sha256(text.encode()).hexdigest()[:10]}{self.suffix}"

    def finished(self, job: Job) -> bool:
        """Whether the clip was made, and is still where it was put."""
        line = self._made.get((job.prompt, job.seed))
        if line is None:
            return False
        name = line["file"]
        return isinstance(name, str) and PurePath(name).name == name and (self.folder / name).is_file()

    def add(self, job: Job, **said: Any) -> None:
        """A line more.  Raises ``OSError`` where it cannot be written."""
        line = {"prompt": job.prompt, "seed": job.seed, "fingerprint": self.fingerprint, **said}
        with files.locked(self.path):
            json_lines.add(self.path, line)
        if "file" in said:
            self._made[job.prompt, job.seed] = line
