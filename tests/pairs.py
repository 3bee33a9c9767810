"""Options in pairs: a fraction of a full product, in which every two values of any two options still meet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any


def pairs(*options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of one value an option.  Always the same ones: each has as many new pairs as any, the first such.

    What goes wrong does so for one value or for two together; what needs three at once has a test of its own.
    """
    rows = list(itertools.product(*(range(len(values)) for values in options)))
    missing = {pair for row in rows for pair in _of(row)}
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(missing & _of(row)))
        missing -= _of(best)
        chosen.append(best)
    return [tuple(values[i] for values, i in zip(options, row, strict=True)) for row in sorted(chosen)]


def _of(row: tuple[int, ...]) -> set[tuple]:
    return set(itertools.combinations(enumerate(row), 2))
