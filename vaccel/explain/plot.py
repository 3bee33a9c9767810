"""A run as SVG text: timeline, what was watched, predicted and measured error, time a step.  Needs Matplotlib."""

from __future__ import annotations

import math
from typing import Any

from ..extras import needed
from .explanation import Explanation, Judged, Watched

with needed("a run's plot"):
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    from ..evaluate.plots import label, svg_text

#: Letters are written into the timeline of runs of at most so many steps.
LETTERS = 100
#: Of the letters, in the order in which they occur.
COLORS = {
    "F": "#4c78a8", "p": "#9ecae9", "r": "#88d27a", "o": "#d6a5c9", "g": "#f2cf5b", "b": "#83bcb6", "m": "#f58518",
    "s": "#ffbf79", "e": "#b279a2",
}  # fmt: skip
OTHER = "#bab0ac"


def svg(found: Explanation) -> str:
    """The drawing.  Raises ``ModuleNotFoundError`` with what to type where there is no Matplotlib."""
    rows = [("timeline", 0.5), *((one, 1.3) for one in found.watched)]
    rows += [("errors", 1.5)] * bool(found.judged) + [("seconds", 1.2)]
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(11, 1.0 + sum(1.25 * share for _, share in rows)), sharex=True, squeeze=False,
        height_ratios=[share for _, share in rows], layout="constrained",
    )  # fmt: skip
    for axis, (row, _) in zip(axes[:, 0], rows, strict=True):
        if row == "timeline":
            _timeline(axis, found)
        elif row == "errors":
            _errors(axis, found.judged)
        elif row == "seconds":
            _seconds(axis, found)
        else:
            _watched(axis, found.steps, row)
    last = max([found.trace.num_steps - 1, *found.steps, 1])
    axes[-1, 0].set_xlim(-0.7, last + 0.7)
    axes[-1, 0].set_xlabel("step")
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(20, integer=True))
    figure.suptitle(
        label("\n".join(filter(None, [found.method, found.predicted and f"predicted: {found.predicted}"]))),
        fontsize=10,
    )
    return svg_text(figure)


def _color(letter: str) -> str:
    return COLORS.get(letter, OTHER)


def _timeline(axis: Any, found: Explanation) -> None:
    letters = found.trace.timeline()
    axis.bar(found.steps, [1] * len(letters), width=0.94, color=[_color(letter) for letter in letters])
    if len(letters) <= LETTERS:
        for step, letter in zip(found.steps, letters, strict=True):
            axis.text(
                step, 0.5, letter, ha="center", va="center", fontsize=8, color="white" if letter == "F" else "0.1"
            )
    axis.set_ylim(0, 1)
    axis.set_yticks([])
    axis.set_frame_on(False)
    handles = [Patch(color=_color(s.letter), label=f"{s.letter}  {s.about}: {s.steps}") for s in found.shares]
    axis.legend(handles=handles, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False)


def _watched(axis: Any, steps: tuple[int, ...], one: Watched) -> None:
    shown = [(steps[place], value) for place, value in one.known if math.isfinite(value)]
    axis.plot([s for s, _ in shown], [v for _, v in shown], ".-", linewidth=1.2, color="0.25")
    if one.bound is not None:
        axis.axhline(one.bound, color="tab:red", linestyle="--", linewidth=1)
        axis.annotate(
            f"{one.bound_name} {one.bound:g}", (1, one.bound), xycoords=("axes fraction", "data"), xytext=(-2, 2),
            textcoords="offset points", ha="right", fontsize=8, color="tab:red",
        )  # fmt: skip
    axis.set_title(label(f"{one.name}: {one.about}" if one.about else one.name), fontsize=9, loc="left")
    values = [one.bound or 0.0, *(v for _, v in shown)]
    axis.set_ylim(min(0.0, *values), 1.2 * max(values) or 1.0)
    axis.grid(alpha=0.3)


def _errors(axis: Any, judged: tuple[Judged, ...]) -> None:
    where = [j.step for j in judged]
    axis.plot(where, [j.measured for j in judged], "o-", label="measured at computed steps", color="tab:orange")
    axis.plot(where, [j.calibrated for j in judged], "s--", label="as calibrated", color="0.45", linewidth=1)
    axis.set_title("what a forecast of the velocity would have been off by, root mean square", fontsize=9, loc="left")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _seconds(axis: Any, found: Explanation) -> None:
    seconds = [step.seconds for step in found.trace.steps]
    axis.bar(found.steps, seconds, width=0.94, color=[_color(letter) for letter in found.trace.timeline()])
    axis.set_title(f"seconds a step ({sum(seconds):.3g} in all)", fontsize=9, loc="left")
    axis.grid(alpha=0.3, axis="y")
