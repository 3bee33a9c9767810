"""Fields that were renamed: files of earlier versions are read under the new names.

Both names mean the same numbers, so an old file stays valid, its digest included, and is written under the new names
the next time that a calibration adds to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: method -> (the path of the object that holds the field, "*" for every entry; the old name; the new one)
RENAMED: dict[str, tuple[tuple[tuple[str, ...], str, str], ...]] = {
    "forecast": ((("samples", "*"), "gains", "error_growth"),),
    "lemica": (((), "hopeless", "min_budget"),),
}


def translate(data: dict[str, Any], method: str) -> dict[str, Any]:
    """Renames the old fields of an artifact in place and returns it; whatever its fields hold."""
    for path, old, new in RENAMED.get(method, ()):
        for holder in _holders(data, path):
            if old in holder and new not in holder:
                renamed = {new if name == old else name: value for name, value in holder.items()}
                holder.clear()
                holder.update(renamed)
    return data


def _holders(value: Any, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The objects at a path; none where something else is there."""
    if not isinstance(value, dict):
        return
    if not path:
        yield value
        return
    inner = list(value.values()) if path[0] == "*" else [value.get(path[0])]
    for held in inner:
        yield from _holders(held, path[1:])
