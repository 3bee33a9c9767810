"""A result as HTML that plays by itself: nothing in it is fetched."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from html import escape

import numpy as np

from ..evaluate import clips
from ..evaluate.fidelity import EQUAL
from ..evaluate.pictures import AMPLIFIED, strip
from ..explain import Explanation, explanation
from .jobs import Job, Made

#: Up to so many pixels, and so wide, a clip's frames are one lossless picture that is played by CSS, so that all clips
#: show the same frame at the same time.  Larger ones are H.264 videos.
STRIP_PIXELS, STRIP_WIDTH = 2**22, 16000
#: Matplotlib draws one figure at a time.
_DRAWING = threading.Lock()


def clips_html(made: Made) -> str:
    """The full model's clip, the fast one and their amplified difference, played together."""
    steps = f"{made.request.steps} steps"
    apart = f"PSNR {decibels(made.psnr)}"
    computed = f"{made.computed[0]} of {made.computed[1]} steps computed" if made.computed else ""
    shown = [
        ("Full model", made.full, [steps, f"{made.full_seconds:.2f} s" + (", made before" if made.kept else "")]),
        (made.label, made.fast, [f"{made.fast_seconds:.2f} s", *filter(None, [computed])]),
        (f"Difference, times {AMPLIFIED}", made.difference, [apart if made.psnr < math.inf else "none at all"]),
    ]
    pause = ""
    if len(made.full) > 1 and fits_strip(made.full):
        pause = '<label class="vaccel-pause"><input type="checkbox"> pause</label>'
    figures = "".join(_figure(name, clip, made.fps, under, clip is made.full) for name, clip, under in shown)
    return f'<div class="vaccel-clips">{figures}</div>{pause}'


def figures_html(made: Made) -> str:
    """The figures that matter: speed, fidelity, steps, time; each beside what was asked for or predicted."""
    found, auto = made.trace.predicted if made.trace is not None else {}, made.request.method == "Auto"
    asked = f"{made.request.speed:g}x asked for" if auto else ""
    if found.get("error") == 0:
        predicted = "predicted: equal"
    elif "psnr" in found:
        predicted = f"predicted: {decibels(found['psnr'])}, 19 in 20 above {decibels(found['psnr_low'])}"
    else:
        predicted = "nothing predicted it"
    full, fast = f"{made.full_seconds:.2f} s", f"{made.fast_seconds:.2f} s"
    tiles = [
        ("Speed, measured", f"{made.speedup:.2f}x", asked),
        ("PSNR, measured", decibels(made.psnr), predicted),
        ("Steps computed", f"{made.computed[0]} of {made.computed[1]}" if made.computed else "-", ""),
        ("Time of the call", fast, f"full model: {full}"),
    ]
    cells = "".join(
        f'<div class="vaccel-tile"><span>{head}</span><b>{escape(value)}</b><small>{escape(beside)}</small></div>'
        for head, value, beside in tiles
    )
    return f'<div class="vaccel-tiles">{cells}</div>'


def trace_html(made: Made) -> str:
    """The run as `vaccel explain` draws it, and what it says of it."""
    if made.trace is None:
        return '<p class="vaccel-soft">No trace: nothing of vaccel ran.</p>'
    from ..explain.plot import svg

    found = explanation(made.trace)
    with _DRAWING:
        drawn = svg(found)
    if len(made.traces) > 1:
        loops = f'<p class="vaccel-soft">The pipeline ran {len(made.traces)} loops; this is the last one.</p>'
    else:
        loops = ""
    lines = "".join(f"<dt>{escape(head)}</dt><dd>{escape(text)}</dd>" for head, text in _said(found))
    return (
        f'{loops}<div class="vaccel-trace" role="img" tabindex="0" '
        f'aria-label="What every step did: {escape(made.trace.timeline())}">{drawn}</div>'
        f'<dl class="vaccel-said">{lines}</dl>'
    )


def progress_html(job: Job, before: int) -> str:
    """How far a request is."""
    if job.stopping:
        return note_html("Stopping after this step.")
    if job.status == "waiting" and before:
        return note_html(f"Waiting: {before} {'request is' if before == 1 else 'requests are'} before this one.")
    what, value = escape(job.what or "starting"), f' value="{job.done}" max="{job.total}"' if job.total else ""
    count = f"step {job.done} of {job.total}" if job.total else "sampling"
    bar = f'<progress{value} aria-label="{what}"></progress>'
    return f'<div class="vaccel-note" role="status">{what}: {count}{bar}</div>'


def note_html(text: str, *, error: bool = False) -> str:
    """A line for whoever waits; "" for no text."""
    if not text:
        return ""
    kind, role = (" vaccel-error", "alert") if error else ("", "status")
    return f'<div class="vaccel-note{kind}" role="{role}">{escape(text)}</div>'


def decibels(value: float) -> str:
    """A PSNR in dB as it is shown."""
    return "equal" if value >= EQUAL else f"{value:.1f} dB"


def fits_strip(clip: np.ndarray) -> bool:
    """Whether a clip [F, H, W, 3] is played as one picture."""
    count, height, width = clip.shape[:3]
    return count * height * width <= STRIP_PIXELS and count * width <= STRIP_WIDTH


def _figure(name: str, clip: np.ndarray, fps: float, under: list[str], leads: bool) -> str:
    caption = f"<figcaption><b>{escape(name)}</b><small>{escape(', '.join(under))}</small></figcaption>"
    return f"<figure>{caption}{_played(name, clip, fps, leads)}</figure>"


def _played(name: str, clip: np.ndarray, fps: float, leads: bool) -> str:
    """What plays a clip; the video that leads has controls, and the others follow it (``page.HEAD``)."""
    count, height, width = clip.shape[:3]
    label, size = escape(name), f"aspect-ratio: {width} / {height}"
    if count > 1 and not fits_strip(clip):
        uri, _ = clips.data_uri(clip, fps)
        shape = f'style="{size}" aria-label="{label}"' + (" controls" if leads else "")
        return f'<video src="{uri}" {shape} autoplay loop muted playsinline></video>'
    sharp = " vaccel-sharp" if max(height, width) < 240 else ""
    if count == 1:
        uri = clips.png_uri(clips.as_uint8(clip)[0])
        return f'<img class="vaccel-still{sharp}" src="{uri}" style="{size}" alt="{label}">'
    style = (
        f"{size}; background-image: url({strip(clip)}); background-size: {100 * count}% 100%; "
        f"animation: vaccel-play {count / fps:.4f}s steps({count}, jump-none) infinite"
    )
    return f'<div class="vaccel-strip{sharp}" role="img" aria-label="{label}" style="{style}"></div>'


def _said(found: Explanation) -> Iterator[tuple[str, str]]:
    """Heads and sentences, in the order of `vaccel explain`."""
    yield "method", found.method
    yield "predicted", found.predicted or "nothing"
    if found.measured:
        yield "measured", found.measured
    for reason, where in found.reasons:
        yield "reason", f"{reason} (steps {', '.join(map(str, where[:8]))}{' and more' if len(where) > 8 else ''})"
    for note in found.trace.notes:
        yield "note", note
    for sentence in found.advice:
        yield "next", sentence
