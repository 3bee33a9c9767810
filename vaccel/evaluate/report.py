"""One self-contained HTML page: table, timelines, plots and clips; and the same as JSON."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import imageio.v3 as iio

from ..methods import DualExpert, LeMiCa
from ..planning import artifacts, files, noise_levels
from . import clips, fidelity, pages, plots
from .comparison import Comparison
from .observations import Observations

#: The fields of a curve of `vaccel distill diagnose` that are plotted.
_CURVE = ("sigma", "loss", "gradient", "boundary")


def write_report(
    comparison: Comparison, folder: Path, *, title: str, facts: dict[str, Any], seen: Observations | None = None
) -> Path:
    """Writes ``report.html``, ``report.json`` and, of clips, a contact sheet a prompt; returns the page's path.

    ``facts`` (versions, device, command) are shown on the page and stored in the JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = {"title": title, "facts": facts, **comparison.to_json()}
    if seen is not None:
        data["observations"] = {"middle": seen.middle(), "direction": seen.direction, "ratio": seen.ratio}
        data["observations"] |= {"small_cond": seen.small_cond, "small_uncond": seen.small_uncond}
    if levels := _noise_levels(comparison):
        data["noise_levels"] = levels
    pages.write_json(folder / "report.json", data)
    jobs = list(dict.fromkeys((prompt, seed) for _, prompt, seed in comparison.clips))
    shows = [_show(comparison, prompt, seed) for prompt, seed in jobs]
    for number, (prompt, seed) in enumerate([] if comparison.sound else jobs):
        sheet = clips.contact_sheet([c for (_, p, s), c in comparison.clips.items() if (p, s) == (prompt, seed)])
        with files.replacing(folder / f"contact_sheet_{number}.png", ".png") as partial:
            iio.imwrite(partial, sheet)
    page = pages.rendered(
        "report.html",
        title=title,
        facts=facts,
        data=data,
        columns=comparison.columns(),
        sound=comparison.sound,
        left_out=[(fidelity.METRICS[name].head, why) for name, why in data["left_out"].items()],
        plot=pages.drawn(plots.cost_fidelity, data["summary"], comparison.small) if data["summary"] else "",
        distilled=any(isinstance(c.method, DualExpert) for c in comparison.contenders),
        graphs=_error_graphs(comparison),
        levels=[drawn for curves in levels if (drawn := pages.drawn(plots.noise_levels, curves))],
        observed=pages.drawn(plots.observations, seen) if seen is not None else "",
        middle=seen.middle() if seen is not None else {},
        shows=shows,
        worst=_worst(comparison),
    )
    path = folder / "report.html"
    files.write_text(path, page)
    return path


def _error_graphs(comparison: Comparison) -> list[str]:
    """The error graph of every artifact that LeMiCa's schedules were solved from."""
    found: dict[Path, dict[str, tuple[int, ...]]] = {}
    for contender in comparison.contenders:
        if isinstance(contender.method, LeMiCa) and contender.artifact is not None:
            name = f"{len(contender.method.full_steps)} full steps" + (", sum" if "sum" in contender.label else "")
            found.setdefault(contender.artifact, {})[name] = contender.method.full_steps

    def graph(path: Path, paths: dict[str, tuple[int, ...]]) -> str:
        return plots.error_graph(artifacts.read(path, LeMiCa.id), paths)

    return [drawn for path, paths in found.items() if (drawn := pages.drawn(graph, path, paths))]


def _noise_levels(comparison: Comparison) -> list[dict[str, Any]]:
    """The curves of ``vaccel distill diagnose`` in the experts' folders, by name."""
    folders = {Path(c.method.folder): None for c in comparison.contenders if isinstance(c.method, DualExpert)}
    found = []
    for path in (folder / "diagnosis.json" for folder in folders):
        if not path.is_file():
            continue
        try:
            curves = noise_levels.read(path)
        except (ValueError, OSError) as error:  # the comparison is reported all the same
            warnings.warn(str(error), stacklevel=2)
            continue
        found.append({name: {key: curve[key] for key in _CURVE} for name, curve in curves.items()})
    return found


def _show(comparison: Comparison, prompt: str, seed: int) -> dict[str, Any]:
    """The clips of one prompt with their captions."""
    rows = {r.contender: r for r in comparison.rows if (r.prompt, r.seed) == (prompt, seed)}
    shown = []
    for (name, p, s), clip in comparison.clips.items():
        if (p, s) != (prompt, seed):
            continue
        row = rows.get(name)
        under = "reference" if name == "full" else ""
        if row is not None:
            under = f"{row.speedup:.2f}x, " + ("equal" if row.decibels == math.inf else f"{row.decibels:.1f} dB")
        shown.append({"name": name, "under": under, "media": _media(comparison, clip)})
    return {"prompt": prompt, "seed": seed, "clips": shown}


def _media(comparison: Comparison, made: Any) -> tuple[str, str]:
    """A clip or a sound as (``data:`` URI, the page's element for it)."""
    if clips.is_sound(made):
        return clips.sound_uri(made, comparison.rate), "audio"
    uri, video = clips.data_uri(made, comparison.fps)
    return uri, "video" if video else "img"


def _worst(comparison: Comparison) -> list[dict[str, Any]]:
    """Every method's worst clip over all its settings, beside the full model's; the worst first."""
    groups = {contender.label: contender.group for contender in comparison.contenders}
    columns = comparison.columns()
    worst: dict[str, tuple[Any, list[Any]]] = {}
    for row in sorted((r for r in comparison.rows if r.decibels < math.inf), key=lambda r: r.decibels):
        pair = [comparison.clips.get((name, row.prompt, row.seed)) for name in ("full", row.contender)]
        if all(clip is not None for clip in pair):
            worst.setdefault(groups[row.contender], (row, pair))
    return [
        {"name": row.contender, "prompt": row.prompt, "speedup": row.speedup,
         "media": [_media(comparison, made) for made in pair],
         "measured": [(m.head, m.text(v)) for m in columns if (v := getattr(row, m.name)) is not None]}
        for row, pair in worst.values()
    ]  # fmt: skip
