"""The results of a comparison: rows, clips, and what went wrong."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import msgspec
import numpy as np

from . import metrics
from .contenders import Contender


@dataclasses.dataclass
class Row:
    """One run of one contender, and the full run made just before it."""

    prompt: str
    seed: int
    contender: str
    seconds: float
    full_seconds: float
    forwards: dict[str, float]
    timeline: str
    psnr: float
    ssim: float
    lpips: float | None
    peak_bytes: int
    checks: dict[str, float]

    @property
    def speedup(self) -> float:
        return self.full_seconds / self.seconds


@dataclasses.dataclass
class Failure:
    """A contender that could not run, or one of its runs (``prompt`` None: it was tried for a step up front)."""

    contender: str
    error: str
    prompt: str | None = None
    seed: int | None = None


@dataclasses.dataclass
class Comparison:
    """All rows, and the clips [F, H, W, 3] in [0, 1] by (contender, prompt, seed); "full" is the full model.

    ``complete`` is False where it ended early; ``failures`` and ``notes`` say what went wrong.
    """

    contenders: list[Contender]
    rows: list[Row]
    clips: dict[tuple[str, str, int], np.ndarray]
    full_checks: dict[str, float]
    small: dict[str, Any] | None
    call: dict[str, Any]
    complete: bool = True
    failures: list[Failure] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    interrupted: KeyboardInterrupt | None = None
    other_rows: str = ""

    def summary(self) -> list[dict[str, Any]]:
        """One entry a contender: medians and spreads over its rows, in the contenders' order."""
        out = []
        for contender in self.contenders:
            rows = [r for r in self.rows if r.contender == contender.label]
            if rows:
                out.append(_summarise(contender, rows))
        return out

    def to_json(self) -> dict[str, Any]:
        rows = [dataclasses.asdict(r) | {"speedup": r.speedup} for r in self.rows]
        return {
            "call": {k: v for k, v in self.call.items() if isinstance(v, (int, float, str, bool))},
            "complete": self.complete,
            "failures": [dataclasses.asdict(failure) for failure in self.failures],
            "notes": self.notes,
            "lpips": metrics.lpips_missing() or "measured",
            "full": {"checks": self.full_checks},
            "small_alone": self.small,
            "summary": self.summary(),
            "rows": finite(rows),
        }


def _summarise(contender: Contender, rows: list[Row]) -> dict[str, Any]:
    def quartiles(values: list[float]) -> list[float]:
        return [float(q) for q in np.quantile(values, [0.25, 0.5, 0.75])]

    finite = [min(r.psnr, 100.0) for r in rows]  # equal clips count as 100 dB
    low, middle, high = quartiles([r.speedup for r in rows])
    checks = {k: statistics.fmean(r.checks[k] for r in rows) for k in rows[0].checks}
    return {
        "contender": contender.label,
        "group": contender.group,
        "kind": contender.kind,
        "method": contender.method.to_json() if contender.method is not None else None,
        "runs": len(rows),
        "speedup": middle,
        "speedup_quartiles": [low, high],
        "seconds": statistics.median(r.seconds for r in rows),
        "forwards": {k: statistics.fmean(r.forwards[k] for r in rows) for k in rows[0].forwards},
        "psnr": statistics.fmean(finite),
        "psnr_std": statistics.pstdev(finite),
        "psnr_worst": min(finite),
        "ssim": statistics.fmean(r.ssim for r in rows),
        "lpips": statistics.fmean(r.lpips for r in rows) if rows[0].lpips is not None else None,
        "peak_bytes": max(r.peak_bytes for r in rows),
        "checks": checks,
        "timeline": rows[0].timeline,
    }


def finite(value: Any) -> Any:
    """JSON has no infinity: equal clips have PSNR "inf"."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def row_of(data: dict[str, Any]) -> Row | None:
    """The row of a line of ``rows.jsonl``; None where it is none."""
    try:
        names = {field.name for field in dataclasses.fields(Row)}
        kept = {name: value for name, value in data.items() if name in names}
        row = msgspec.convert({**kept, "psnr": float(kept["psnr"])}, Row)
    except (msgspec.ValidationError, ValueError, TypeError, KeyError):
        return None
    return row if row.seconds > 0 and row.full_seconds > 0 else None


def mean(checks: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each of several scores."""
    return {k: statistics.fmean(c[k] for c in checks) for k in (checks[0] if checks else {})}
