"""``vaccel explain``: a run's trace in the terminal, and as SVG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from .console import clear_errors, console, say

if TYPE_CHECKING:
    from ..explain import Explanation, Share, Watched

BARS = "▁▂▃▄▅▆▇█"
#: Where the output's encoding has no blocks.
DIGITS = "12345678"
STYLES = {"F": "bold", "p": "cyan", "r": "green", "o": "magenta", "g": "yellow", "b": "blue", "m": "red", "s": "yellow"}
#: Steps a line, at most: a ruler's tens can be counted.
MOST = 100
NAME = 16


def explain(
    run: Annotated[Path, typer.Argument(help="A trace: `vaccel generate` writes one, handle.trace.save(...) too.")],
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw it to this SVG file too (needs Matplotlib).")] = None,
) -> None:
    """Draw what a run did: its timeline, what was watched, predicted and measured error, and what to try next."""
    with clear_errors("nothing was written", then="vaccel generate PROMPT --trace RUN.json"):
        from ..engine.trace import Trace
        from ..planning import files

        trace = Trace.load(run)
        from ..explain import explanation

        found = explanation(trace)
        if svg is not None:
            files.check(svg)
            from ..explain.plot import svg as draw

            files.write_text(svg, draw(found))
    show(found)
    if svg is not None:
        say(f"drawn: {svg}")


def show(found: Explanation) -> None:
    """Prints it at the console's width."""
    trace = found.trace
    state = "" if trace.finished else f", stopped after {len(found.steps)}"
    _line("method", found.method)
    _line("steps", f"{trace.num_steps}{state}; forwards: large {trace.calls['large']}, small {trace.calls['small']}")
    if found.steps:
        console.print()
        for line in _drawn(found):
            console.print(line, no_wrap=True, overflow="crop", highlight=False)
        console.print()
        for share in found.shares:
            _line(f"{share.letter:>{NAME}}", _share(share), STYLES.get(share.letter, ""))
    for one in found.watched:
        _line(one.name, _in_words(found, one))
    console.print()
    _line("predicted", found.predicted or "nothing")
    _line("measured", found.measured or "nothing: no forecast was compared with a computed step")
    for reason, where in found.reasons:
        _line("reason", f"{reason} ({'step' if len(where) == 1 else 'steps'} {_listed(where)})")
    for note in trace.notes:
        _line("note", note)
    for sentence in found.advice:
        _line("next", sentence, "bold")


def printable(text: str) -> str:
    """A file's own text without what a terminal would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _line(head: str, text: str, style: str = "") -> None:
    """A line with its head at the left, wrapped beside it."""
    room = max(20, console.width - NAME - 1)
    lines = textwrap.wrap(printable(text), room, break_on_hyphens=False, replace_whitespace=False) or [""]
    for number, line in enumerate(lines):
        text = Text.assemble((f"{printable(head)[:NAME] if not number else '':<{NAME}} ", "bold"), (line, style))
        console.print(text, highlight=False, soft_wrap=True)


def _drawn(found: Explanation) -> Iterator[Text]:
    """The timeline and the bars of what was watched, as many steps a line as fit."""
    room = max(10, min(MOST, console.width - NAME - 1) // 10 * 10)
    blocks = BARS if "utf" in console.encoding.lower() else DIGITS
    bars = [(one, _bars(one, blocks)) for one in found.watched]
    letters = found.trace.timeline()
    for begin in range(0, len(letters), room):
        here = range(begin, min(begin + room, len(letters)))
        if begin:
            yield Text()
        yield Text.assemble(f"{'step':<{NAME}} ", (_ruler([found.steps[i] for i in here]), "dim"))
        line = Text(f"{'action':<{NAME}} ")
        for i in here:
            line.append(letters[i], STYLES.get(letters[i], ""))
        yield line
        for one, drawn in bars:
            over = set(one.above)
            line = Text(f"{printable(one.name)[:NAME]:<{NAME}} ")
            for i in here:
                line.append(drawn[i], "red" if i in over else "")
            yield line
            if over & set(here):
                marks = "".join("^" if i in over else " " for i in here).rstrip()
                yield Text(f"{'  above it':<{NAME}} {marks}")


def _ruler(steps: Sequence[int]) -> str:
    """The numbers of steps above every tenth."""
    line = [" "] * len(steps)
    for place in range(0, len(steps), 10):
        for offset, digit in enumerate(str(steps[place])):
            if place + offset < len(line):
                line[place + offset] = digit
    return "".join(line).rstrip()


def _bars(one: Watched, blocks: str) -> str:
    """A character a step: its height from nothing to the largest value or the bound; "?" for what is no number."""
    finite = [abs(v) for _, v in one.known if math.isfinite(v)]
    top = max([*finite, abs(one.bound or 0.0)], default=0.0) or 1.0

    def bar(value: float | None) -> str:
        if value is None:
            return " "
        if not math.isfinite(value):
            return "?"
        return blocks[min(len(blocks) - 1, int(abs(value) / top * len(blocks)))]

    return "".join(map(bar, one.values))


def _share(share: Share) -> str:
    """A letter of the timeline in words."""
    steps = "1 step" if share.steps == 1 else f"{share.steps} steps"
    forwards = [
        f"{n} forwards of the {model} model" for n, model in ((share.large, "large"), (share.small, "small")) if n
    ]
    return ", ".join([f"{share.about}: {steps}", f"{share.seconds:.2f} s", *forwards])


def _in_words(found: Explanation, one: Watched) -> str:
    finite = [(i, v) for i, v in one.known if math.isfinite(v)]
    said = [one.about] if one.about else []
    if finite:
        place, most = max(finite, key=lambda pair: pair[1])
        least = min(value for _, value in finite)
        said.append(f"{least:.3g} to {most:.3g}, the largest at step {found.steps[place]}")
    if len(finite) < len(one.known):
        said.append(f"no number at {len(one.known) - len(finite)} steps")
    if one.bound is not None:
        above = [found.steps[i] for i in one.above]
        said.append(f"{one.bound_name} {one.bound:g}, above it at {_listed(above) if above else 'no step'}")
    return "; ".join(said)


def _listed(steps: Sequence[Any]) -> str:
    """The first few of some steps."""
    shown = ", ".join(map(str, steps[:8]))
    return shown if len(steps) <= 8 else f"{shown} and {len(steps) - 8} more"
