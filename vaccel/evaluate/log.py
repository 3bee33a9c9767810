"""What a comparison keeps on the way: a row a run in ``rows.jsonl`` and the clips beside it, to go on from.

A row belongs to a prompt, a seed, a contender and a fingerprint of what was compared: weights, scheduler, call.  Rows
of other fingerprints stay in the file and count for nothing.  Clips are kept in 8 bits, as the report shows them; the
full model's clip of the prompt in progress is kept as it is, so that the other contenders are measured against the
same numbers.  Sounds are kept in 16 bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..planning import files, json_lines
from .clips import as_int16, as_uint8, is_sound

#: (the contender's key, or "full" or "small"; prompt; seed)
Key = tuple[str, str, int]
#: Rows of the full and the small model and of trials, which are no contenders' runs, lie in a file of their own.
REFERENCES = "references.jsonl"


def is_reference(key: Key) -> bool:
    """Whether a row is none of a contender's run: one of the full or the small model, or that a contender was tried."""
    return key[0] in ("full", "small") or key[0].startswith("tried ")


class Log:
    """The rows in ``path`` of what ``header`` describes.

    Attributes:
        rows: those that there are.
        notes: in words, what was damaged and what could not be written.
        others: in words, which of the rows count for nothing here.
        broken: whether a row could not be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, restart: bool = False):
        self.path, self.folder = path, path.parent / "clips"
        text = json.dumps(header, sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.rows: dict[Key, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.others = ""
        self.broken = False
        for file in (path, path.with_name(REFERENCES)):
            self._take(file, restart)

    def _take(self, file: Path, restart: bool) -> None:
        """Reads a file's rows, and writes it anew where a line was cut short or all is measured again."""
        if not file.is_file():
            return
        whole, damaged, others = [], 0, 0
        for line in json_lines.read(file, ("key", "prompt", "seed")):
            if line is None:
                damaged += 1
                continue
            key = line["key"], line["prompt"], line["seed"]
            ours = line.get("fingerprint") == self.fingerprint
            others += not ours
            if not (ours and restart):
                whole.append(line)
            if ours and not restart:
                self.rows[key] = {k: v for k, v in line.items() if k not in ("key", "fingerprint")}
        if others and file == self.path:
            self.others = f"{others} rows of {file.name} are of other weights, schedulers or calls: they stay there"
        if damaged:
            self.notes.append(f"{damaged} damaged line(s) of {file.name}: those runs were made again")
        if damaged or restart:
            files.write_text(file, "".join(json.dumps(line) + "\n" for line in whole))

    def append(self, key: Key, row: dict[str, Any]) -> None:
        """Adds a run.  Where that is not possible, it is noted once, and the comparison goes on without."""
        names = {"prompt": key[1], "seed": key[2]}
        again = key in self.rows and {**self.rows[key], **names} == {**row, **names}
        self.rows[key] = row
        if again or self.broken:  # the full model's row is there already where only its clip was lost
            return
        line = {**row, "key": key[0], "prompt": key[1], "seed": key[2], "fingerprint": self.fingerprint}
        file = self.path.with_name(REFERENCES) if is_reference(key) else self.path
        try:
            json_lines.add(file, line)
        except OSError as error:
            self.broken = True
            self.notes.append(f"{file} could not be written ({error.strerror or error}): it holds only part")

    # -- clips -------------------------------------------------------------------------------------------------------

    def _clip(self, name: str, prompt: str, seed: int, exact: bool = False) -> Path:
        hashed = hashlib.sha256(json.dumps([name, prompt, seed, self.fingerprint]).encode()).hexdigest()
        return self.folder / f"{hashed[:24]}{'.exact' if exact else ''}.npy"

    def keep(self, name: str, prompt: str, seed: int, clip: np.ndarray, exact: bool = False) -> None:
        """Keeps a clip [F, H, W, 3] or a sound [channels, samples]; never raises for a disk that is full."""
        rounded = as_int16 if is_sound(clip) else as_uint8
        try:
            self.folder.mkdir(exist_ok=True)
            with files.replacing(self._clip(name, prompt, seed, exact)) as partial, partial.open("wb") as file:
                np.save(file, clip if exact else rounded(clip), allow_pickle=False)
        except OSError as error:
            said = f"clips could not be kept ({error.strerror or error})"
            self.notes += [said] if said not in self.notes else []

    def clip(self, name: str, prompt: str, seed: int, exact: bool = False) -> np.ndarray | None:
        """A clip or a sound that was kept; None where it is not there."""
        try:
            held = np.load(self._clip(name, prompt, seed, exact), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        scale = {"uint8": 255, "int16": 32767}.get(held.dtype.name)
        return held if scale is None else held.astype(np.float32) / scale

    def done(self, name: str, prompt: str, seed: int) -> None:
        """The exact clip is not needed any more."""
        self._clip(name, prompt, seed, exact=True).unlink(missing_ok=True)
