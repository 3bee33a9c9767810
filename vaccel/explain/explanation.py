"""What a trace says, put in order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from ..actions import ACTIONS
from ..engine.trace import StepRecord, Trace
from ..methods.base import _METHODS, Method
from . import advice

#: Of a method's fields, those that tell a reader nothing.
_UNTOLD = ("seal", "fitted", "max_error", "predicted", "method")
#: Values that belong to another one, or are shown by themselves.
_BESIDE = ("decided_by", "judged", "measured", "calibrated")


@dataclasses.dataclass(frozen=True)
class Share:
    """The steps that took one action: how many, how long they took in all, how many forwards they cost."""

    letter: str
    about: str
    steps: int
    seconds: float
    large: int
    small: int


@dataclasses.dataclass(frozen=True)
class Watched:
    """A value that steps recorded, the largest of a batch's: one a place of the timeline, None where there is none.

    ``bound`` is what it is held against, the method's field ``bound_name``; None where there is nothing of the kind.
    """

    name: str
    about: str
    values: tuple[float | None, ...]
    bound: float | None = None
    bound_name: str = ""

    @property
    def known(self) -> list[tuple[int, float]]:
        """(place in the timeline, value) where there is one; NaN and infinity too."""
        return [(i, v) for i, v in enumerate(self.values) if v is not None]

    @property
    def above(self) -> list[int]:
        """The places at which it was above its bound, or no number."""
        return [] if self.bound is None else [i for i, v in self.known if not v <= self.bound]


@dataclasses.dataclass(frozen=True)
class Judged:
    """A computed step, what its velocity's forecast was off by (rms), and what the calibration expects there."""

    step: int
    measured: float
    calibrated: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A run in words.  ``shares`` are in the order in which the letters occur, ``steps`` the timeline's own numbers."""

    method: str
    trace: Trace
    steps: tuple[int, ...]
    shares: tuple[Share, ...]
    watched: tuple[Watched, ...]
    judged: tuple[Judged, ...]
    reasons: tuple[tuple[str, tuple[int, ...]], ...]
    advice: tuple[str, ...]

    @property
    def predicted(self) -> str:
        """What was expected of the run, in words; "" where nothing was."""
        found, said = self.trace.predicted, []
        if "error" in found:
            said.append(f"error of the latents {number(found['error'])} (root mean square)")
        if "psnr" in found:
            said.append(f"PSNR {number(found['psnr'], 3)} dB")
        if "psnr_low" in found:
            said.append(f"19 runs in 20 above {number(found['psnr_low'], 3)} dB")
        return ", ".join(said)

    @property
    def measured(self) -> str:
        """How wrong forecasts were where computed steps showed it, in words; "" where nothing did."""
        ratios = {j.step: j.measured / j.calibrated for j in self.judged if j.calibrated > 0}
        if not ratios:
            return ""
        worst = max(ratios, key=lambda step: (not ratios[step] <= math.inf, ratios[step]))
        middle = sorted(ratios.values())[len(ratios) // 2]
        return (
            f"at {len(ratios)} computed steps forecasts would have been off by {number(middle)} times the calibrated "
            f"error (median), {number(ratios[worst])} times at worst, at step {worst}"
        )


def explanation(trace: Trace) -> Explanation:
    """Puts a trace in order."""
    kind = _METHODS.get(str(trace.method.get("method")), Method)
    watched = _watched(trace, kind)
    judged = tuple(_judged(trace.steps))
    return Explanation(
        called(trace.method), trace, tuple(step.index for step in trace.steps), tuple(_shares(trace.steps)), watched,
        judged, tuple(_reasons(trace.steps)), tuple(advice.advice(trace, watched)),
    )  # fmt: skip


def called(fields: Mapping[str, Any]) -> str:
    """A method's JSON about as the method would be called: its short fields that are not the defaults."""
    name = str(fields.get("method", "no method"))
    kind = _METHODS.get(name)
    defaults = {f.name: f.default for f in dataclasses.fields(kind)} if kind and kind is not Method else {}
    shown = [
        f"{field}={_short(field, value)}"
        for field, value in fields.items()
        if field not in _UNTOLD and isinstance(value, (str, int, float)) and defaults.get(field) != value
        and len(repr(value) if not isinstance(value, int) else hex(value)) <= 120
    ]  # fmt: skip
    return f"{kind.__name__ if kind else name}({', '.join(shown)})"


def _short(field: str, value: Any) -> str:
    """A field's value: of a path its last part."""
    if isinstance(value, str):
        return repr(PurePath(value).name if field in ("artifact", "folder") else value)
    return number(value) if isinstance(value, float) else str(value)


def number(value: float | None, digits: int = 3) -> str:
    """A number as it is shown."""
    return "-" if value is None else f"{value:.{digits}g}"


def _shares(steps: Iterable[StepRecord]) -> Iterable[Share]:
    groups: dict[str, list[StepRecord]] = {}
    for step in steps:
        groups.setdefault(step.action.letter, []).append(step)
    for letter, group in groups.items():
        seconds = sum(s.seconds for s in group)
        forwards = sum(s.large for s in group), sum(s.small for s in group)
        yield Share(letter, ACTIONS[letter].about, len(group), seconds, *forwards)


def _watched(trace: Trace, kind: type[Method]) -> tuple[Watched, ...]:
    names = dict.fromkeys(name for step in trace.steps for name in step.metrics if name not in _BESIDE)
    found = []
    for name in names:
        about, field = kind.records.get(name) or kind.records.get(name.partition(" ")[0]) or ("", "")
        values = tuple(_largest(step.metrics.get(name)) for step in trace.steps)
        bound = trace.method.get(field) if field else None
        held = isinstance(bound, (int, float)) and not isinstance(bound, bool)
        if any(value is not None for value in values):
            found.append(Watched(name, about, values, float(bound) if held else None, field if held else ""))
    return tuple(found)


def _largest(value: Any) -> float | None:
    """The value that decides: of a batch the largest, and whatever is no number before all others."""
    values = [float(v) for v in (value if isinstance(value, list) else [value]) if v is not None]
    return max(values, key=lambda v: (math.isnan(v), v)) if values else None


def _judged(steps: Iterable[StepRecord]) -> Iterable[Judged]:
    for step in steps:
        found = [_largest(step.metrics.get(name)) for name in ("judged", "measured", "calibrated")]
        if None not in found and math.isfinite(found[0]):
            yield Judged(int(found[0]), found[1], found[2])


def _reasons(steps: Iterable[StepRecord]) -> Iterable[tuple[str, tuple[int, ...]]]:
    groups: dict[str, list[int]] = {}
    for step in steps:
        if step.reason:
            groups.setdefault(step.reason, []).append(step.index)
    return ((reason, tuple(where)) for reason, where in groups.items())
