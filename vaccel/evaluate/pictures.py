"""The demo's page: what the full model and the fast runs made, played together, before any number."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..planning import files
from . import clips, pages, plots
from .comparison import Comparison, Row
from .contenders import Contender

#: What a difference is multiplied by to be seen.
AMPLIFIED = 8


def write_pictures(comparison: Comparison, folder: Path, *, title: str, facts: dict[str, Any]) -> Path:
    """Writes ``report.html``, which begins with the clips, and ``report.json``; returns the page's path.

    The page is for small clips: every frame of them is in it, lossless.  The first contender is the one that a slider
    lays over the full model's clip.  ``facts`` (versions, device, command) are shown and stored.

    Raises ``OSError`` where they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = {"title": title, "facts": facts, **comparison.to_json()}
    pages.write_json(folder / "report.json", data)
    shows = [_show(comparison, number, *job) for number, job in enumerate(comparison.full)]
    page = pages.rendered(
        "pictures.html",
        title=title,
        facts=facts,
        data=data,
        columns=comparison.columns(),
        shows=shows,
        frames=max((len(clip) for clip in comparison.clips.values()), default=1),
        fps=comparison.fps,
        amplified=AMPLIFIED,
        most=len(comparison.contenders) + 1,
        promise=_promise(comparison),
        plot=pages.drawn(plots.cost_fidelity, data["summary"], None, (6.4, 4)) if data["summary"] else "",
    )
    path = folder / "report.html"
    files.write_text(path, page)
    return path


def strip(clip: np.ndarray) -> str:
    """A clip [F, H, W, 3] in [0, 1] as the ``data:`` URI of one picture, its frames from left to right, lossless."""
    frames = clips.as_uint8(clip)
    return clips.png_uri(np.concatenate(list(frames), axis=1))


def difference(reference: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """How far a clip is from the reference, amplified: black where they are equal; [F, H, W, 3] in [0, 1]."""
    return np.clip(AMPLIFIED * np.abs(clip - reference), 0, 1)


def computed_steps(comparison: Comparison, row: Row) -> int | None:
    """How many steps' worth of the large model's forwards a run computed; None where the full model's are unknown."""
    full = comparison.full.get((row.prompt, row.seed), {}).get("forwards", {}).get("large", 0)
    steps = comparison.call["num_inference_steps"]
    return round(row.forwards["large"] / full * steps) if full else None


def _show(comparison: Comparison, number: int, prompt: str, seed: int) -> dict[str, Any]:
    """What the page shows of one prompt: the full model's clip first, then every contender's that there is."""
    steps = comparison.call["num_inference_steps"]
    full = comparison.clips["full", prompt, seed]
    seconds = comparison.full[prompt, seed].get("seconds")
    under = [f"{steps} steps"] + ([f"{seconds:.1f} s"] if seconds else [])
    shown = [
        {"id": f"clip-{number}-0", "name": "full model", "strip": strip(full), "size": full.shape[1:3], "under": under}
    ]
    rows = {r.contender: r for r in comparison.rows if (r.prompt, r.seed) == (prompt, seed)}
    for place, contender in enumerate(comparison.contenders, start=1):
        row, clip = rows.get(contender.label), comparison.clips.get((contender.label, prompt, seed))
        if row is None or clip is None:
            continue
        computed = computed_steps(comparison, row)
        apart = "equal" if row.decibels == math.inf else f"PSNR {row.decibels:.1f} dB"
        shown.append({
            "id": f"clip-{number}-{place}", "name": _name(contender), "size": clip.shape[1:3],
            "strip": strip(clip), "difference": strip(difference(full, clip)), "first": place == 1,
            "under": [f"{row.speedup:.1f}x as fast", apart, f"{row.seconds:.1f} s",
                      *([f"{computed} of {steps} steps computed"] if computed is not None else [])],
        })  # fmt: skip
    return {"prompt": prompt, "seed": seed, "clips": shown}


def _name(contender: Contender) -> str:
    """A contender without where its calibration lies."""
    return re.sub(r"artifact='[^']*'(, )?", "", contender.label)


def _promise(comparison: Comparison) -> str:
    """What the first contender reached, in one line; "" before it has run."""
    label = comparison.contenders[0].label if comparison.contenders else ""
    entry = next((e for e in comparison.summary() if e["contender"] == label), None)
    if entry is None:
        return ""
    return f"{_name(comparison.contenders[0])}: {entry['speedup']:.1f}x as fast, PSNR {entry['decibels']:.1f} dB"
