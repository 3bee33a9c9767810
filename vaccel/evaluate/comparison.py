"""The results of a comparison: rows, clips, and what went wrong."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import msgspec
import numpy as np

from . import fidelity
from .clips import is_sound
from .contenders import Contender


@dataclasses.dataclass
class Row:
    """One run of one contender, and the full run made just before it.

    A metric that was not measured, or does not apply, is None (``vaccel.evaluate.fidelity``).
    """

    prompt: str
    seed: int
    contender: str
    seconds: float
    full_seconds: float
    forwards: dict[str, float]
    timeline: str
    psnr: float | None
    ssim: float | None
    lpips: float | None
    peak_bytes: int
    checks: dict[str, float]
    vmaf: float | None = None
    flicker: float | None = None
    cvvdp: float | None = None
    snr: float | None = None

    @property
    def speedup(self) -> float:
        return self.full_seconds / self.seconds

    @property
    def decibels(self) -> float:
        """PSNR of a clip, SNR of a sound."""
        return next((value for value in (self.psnr, self.snr) if value is not None), math.nan)


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

    Of pipelines of sound the "clips" are waveforms [channels, samples], ``rate`` samples a second.  ``metrics`` are
    those to be measured, ``fps`` the frames a second that clips are seen with.  ``full`` has what is known of the full
    model's own runs by (prompt, seed): checks, and in a brief comparison seconds and forwards.

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
    metrics: list[fidelity.Metric] = dataclasses.field(default_factory=fidelity.chosen)
    fps: float = 12
    rate: int = 44100
    full: dict[tuple[str, int], dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether the pipeline makes sounds."""
        return any(map(is_sound, self.clips.values()))

    def columns(self) -> list[fidelity.Metric]:
        """The metrics that there are values of, in their order."""
        summary = self.summary()
        return [m for m in fidelity.METRICS.values() if any(entry[m.name] is not None for entry in summary)]

    def left_out(self) -> dict[str, str]:
        """Of the metrics that have no column, or no value in some rows, why."""
        chosen, said = {metric.name for metric in self.metrics}, {}
        for metric in fidelity.METRICS.values():
            lacking = [row for row in self.rows if getattr(row, metric.name) is None]
            if metric.sound != self.sound or not lacking:
                continue
            if why := metric.missing():
                said[metric.name] = why
            elif metric.name not in chosen:
                said[metric.name] = "not asked for"
            elif len(lacking) < len(self.rows):
                said[metric.name] = f"{len(lacking)} rows were measured without it; --restart measures them anew"
            else:
                said[metric.name] = "of clips of several frames only" if metric.name == "flicker" else "not measured"
        return said

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
            "fps": self.fps,
            "metrics": {metric.name: metric.about for metric in self.columns()},
            "left_out": self.left_out(),
            "full": {"checks": self.full_checks},
            "small_alone": self.small,
            "summary": self.summary(),
            "rows": finite(rows),
        }


def _summarise(contender: Contender, rows: list[Row]) -> dict[str, Any]:
    def quartiles(values: list[float]) -> list[float]:
        return [float(q) for q in np.quantile(values, [0.25, 0.5, 0.75])]

    decibels = [min(r.decibels, fidelity.EQUAL) for r in rows]
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
        "decibels": statistics.fmean(decibels),  # PSNR of clips, SNR of sounds
        "psnr_std": statistics.pstdev(decibels),
        **_fidelity(rows),
        "peak_bytes": max(r.peak_bytes for r in rows),
        "checks": checks,
        "timeline": rows[0].timeline,
    }


def _fidelity(rows: list[Row]) -> dict[str, float | None]:
    """Mean and worst of every metric; None where a row lacks it, so that all means are of the same clips."""
    found: dict[str, float | None] = {}
    for metric in fidelity.METRICS.values():
        values = [getattr(row, metric.name) for row in rows]
        known = all(value is not None for value in values)
        found[metric.name], found[f"{metric.name}_worst"] = metric.of_rows(values) if known else (None, None)
    return found


def finite(value: Any) -> Any:
    """JSON has no infinity: equal clips have PSNR "inf"."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def row_of(data: dict[str, Any]) -> Row | None:
    """The row of a line of ``rows.jsonl``; None where it is none."""
    try:
        names = {field.name for field in dataclasses.fields(Row)}
        kept = {name: value for name, value in data.items() if name in names}
        infinite = {n: float(kept[n]) for n in fidelity.YARDSTICKS if kept.get(n) is not None}
        row = msgspec.convert({**kept, **infinite}, Row)
    except (msgspec.ValidationError, ValueError, TypeError, KeyError):
        return None
    measured = row.psnr is not None or row.snr is not None
    return row if measured and row.seconds > 0 and row.full_seconds > 0 else None


def mean(checks: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each of several scores."""
    return {k: statistics.fmean(c[k] for c in checks) for k in (checks[0] if checks else {})}
