"""Files of a JSON object a line, to which lines are added one by one: what a killed writer leaves is read past."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def read(path: str | Path, required: Iterable[str]) -> Iterator[dict[str, Any] | None]:
    """The objects of a file, line by line; None for a line that is damaged or lacks a required field.

    Args:
        required: fields that are there, and numbers or texts.

    Raises ``OSError`` where it cannot be read.
    """
    names = tuple(required)
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
                hash(tuple(line[name] for name in names))
            except (ValueError, RecursionError, TypeError, KeyError):
                yield None
            else:
                yield line


def add(path: str | Path, line: dict[str, Any]) -> None:
    """A line more, on a line of its own also after one that was cut short.  Raises ``OSError`` where it cannot be
    written."""
    text = json.dumps(line) + "\n"
    with Path(path).open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())
