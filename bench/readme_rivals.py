"""The README's tables of the rivals of 2026; ``readme.py`` puts them in their place."""

from __future__ import annotations

from typing import Any

import results
from readme_forecast import OURS, _read, _source, _table

FAMILIES = {"shapes": "moving shapes", "glyphs": "glyphs (U-Net)"}
MARGIN = 3.0  # dB
RESULTS = results.BENCH / "results"
MINE = (OURS, "Forecast.prior")


def rivals() -> str:
    """A table for each family, then every exception to Forecast's margin."""
    return _tables({family: f"cpu/rivals_{family}" for family in FAMILIES})


def rivals_fresh() -> str:
    """The same on captions that nothing was chosen on, of the families that were measured."""
    names = {family: f"cpu/rivals_{family}_fresh" for family in FAMILIES}
    return _tables({f: name for f, name in names.items() if (RESULTS / f"{name}.json").exists()})


def _tables(files: dict[str, str]) -> str:
    parts, exceptions = [], []
    for family, file in files.items():
        about, data = FAMILIES[family], _read(file)
        of = {(r["rival"], r["budget"]): r for r in data["rows"]}
        names = list(dict.fromkeys(r["rival"] for r in data["rows"]))
        budgets = sorted({r["budget"] for r in data["rows"]})
        rows = [
            [f"**{name}**" if name in MINE else name, *(_dB(of.get((name, b)), b) for b in budgets)] for name in names
        ]
        theirs, ours = data["calibration_samples"], data["forecast_samples"]
        held_out = len(data["prompts"])
        note = f"{about}, {held_out} held-out captions; rivals calibrated on {theirs} others, Forecast on {ours}. "
        parts += [_table([f"{about}: computed of 50", *map(str, budgets)], rows), note + _source(file, data)]
        exceptions += _exceptions(about, of, [n for n in names if n not in MINE], budgets)
    where = "both" if len(files) > 1 else FAMILIES[next(iter(files))]
    return "\n\n".join([*parts, _sentence(exceptions, where)])


def _dB(row: dict[str, Any] | None, budget: int) -> str:  # noqa: N802  the unit's name
    if row is None:
        return ""
    less = f" at {row['steps']:.1f}" if budget - row["steps"] > 0.5 else ""
    return f"{row['psnr']:.1f} ({row['psnr_worst']:.1f}){less}"


def _exceptions(about: str, of: dict[tuple[str, int], dict[str, Any]], names: list[str], budgets: list[int]) -> list:
    """(family, rival, budget, dB ahead in the mean, of the worst) wherever one of the two is below the margin."""
    found = []
    for name in names:
        for b in budgets:
            if (name, b) in of and (OURS, b) in of:
                ahead = [of[OURS, b][key] - of[name, b][key] for key in ("psnr", "psnr_worst")]
                if min(ahead) < MARGIN:
                    found.append((about, name, b, *ahead))
    return found


def _sentence(exceptions: list[tuple[str, str, int, float, float]], where: str) -> str:
    if not exceptions:
        return f"Forecast is at least {MARGIN:g} dB ahead of every rival at every budget on {where}, mean and worst."
    told = "; ".join(
        f"{name} at {b} on {about}: {mean:+.1f} dB ({worst:+.1f})" for about, name, b, mean, worst in exceptions
    )
    return (
        f"Forecast is at least {MARGIN:g} dB ahead of every rival at every budget on {where}, mean and worst, but for "
        f"these (Forecast against the rival, mean and, in brackets, worst): {told}."
    )
