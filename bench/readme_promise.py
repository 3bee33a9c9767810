"""The README's table of what ``Auto(psnr=...)`` promised and kept; ``readme.py`` puts it in its place."""

from __future__ import annotations

import statistics
from typing import Any

from readme_forecast import _read, _source, _table
from readme_levels import SOLVERS


def promise() -> str:
    """A row a setting, then the share kept over all and what it cost."""
    data = _read("cpu/promise")
    asked = [a["psnr"] for a in data["rows"][0]["asked"]]
    rows = [[_setting(row), *(_cell(a) for a in row["asked"])] for row in data["rows"]]
    header = ["asked for, computed: kept (cheapest fixed)", *(f"{psnr:g} dB" for psnr in asked)]
    every = [a for row in data["rows"] for a in row["asked"] if a["promised"]]
    known = [a for a in every if a["cheapest"] is not None]
    note = (
        f"{_captions(data['rows'])} held-out captions; {statistics.fmean(a['reached'] for a in every):.0%} of all "
        f"promised runs reach what was asked, with {statistics.fmean(a['steps'] / a['cheapest'] for a in known):.2f} "
        "times the steps of the cheapest budget that 95 % would have reached it with, found afterwards. "
    )
    return _table(header, rows) + "\n\n" + note + _source("cpu/promise", data)


def _captions(rows: list[dict[str, Any]]) -> str:
    """How many each family was tried on."""
    counts = {row["family"]: row["captions"] for row in rows}
    return " and ".join(f"{count} ({name})" for name, count in counts.items())


def _setting(row: dict[str, Any]) -> str:
    return f"{row['family']}, {SOLVERS[row['solver']]}, {row['steps']}"


def _cell(asked: dict[str, Any]) -> str:
    if not asked["promised"]:
        return "not promised"
    return f"{asked['steps']:.3g}: {asked['reached']:.0%} ({asked['cheapest'] or 'none'})"
