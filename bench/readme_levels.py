"""The README's tables of calibrations read at other noise levels; ``readme.py`` puts them in their place."""

from __future__ import annotations

import statistics
from typing import Any

from readme_forecast import _read, _source, _table

NAMES = (
    "calibrated for it", "read by level", "prior", "prior of the other family", "shaped by index",
    "straight line by the prior", "fewer steps",
)  # fmt: skip
SOLVERS = {
    "unipc": "UniPC", "euler": "Euler", "dpm++": "DPM++", "heun": "Heun", "ddim": "DDIM",
    "dpm++ karras": "DPM++, Karras", "euler karras": "Euler, Karras",
}  # fmt: skip


def levels() -> str:
    """A table for each family, then what a calibration loses by being read elsewhere."""
    parts = []
    for family, about in (("shapes", "moving shapes"), ("glyphs", "glyphs (U-Net)")):
        data = _read(f"cpu/levels_{family}")
        rows = [[_setting(row), *(_dB(row["psnr"].get(name)) for name in NAMES)] for row in data["rows"]]
        note = f"{about}, {len(data['prompts'])} held-out captions; {_lost(data['rows'])} "
        parts += [_table([f"{about}: T, computed", *NAMES], rows), note + _source(f"cpu/levels_{family}", data)]
    return "\n\n".join(parts)


def _setting(row: dict[str, Any]) -> str:
    shift = f", shift {row['shift']:g}" if row["shift"] else ""
    return f"{SOLVERS[row['solver']]}{shift}: {row['steps']}, {row['budget']}"


def _dB(found: list[float] | None) -> str:  # noqa: N802  the unit's name
    return f"{found[0]:.1f} ({found[1]:.1f})" if found else ""


def _lost(rows: list[dict[str, Any]]) -> str:
    def mean(name: str, other: str, which: int) -> float:
        return statistics.fmean(row["psnr"][name][which] - row["psnr"][other][which] for row in rows)

    told = [
        f"{name} against {other}: {mean(name, other, 0):+.1f} dB in the mean, {mean(name, other, 1):+.1f} of the worst"
        for name, other in (
            ("read by level", "calibrated for it"), ("prior", "shaped by index"),
            ("prior of the other family", "shaped by index"),
        )
    ]  # fmt: skip
    return "; ".join(told) + "."
