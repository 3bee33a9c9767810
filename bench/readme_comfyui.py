"""The table of ``docs/comfyui.md``; ``readme.py`` puts it in its place."""

from __future__ import annotations

from readme_forecast import _read, _source, _table

FAMILIES = {"glyphs": "glyphs (U-Net, predicted noise)", "shapes": "moving shapes (transformer, flow)"}


def comfyui() -> str:
    """PSNR of every method beside ComfyUI's own caches, by setting."""
    data = _read("cpu/comfyui")
    settings = list(dict.fromkeys((r["family"], r["sampler"], r["steps"], r["budget"]) for r in data["rows"]))
    methods = list(dict.fromkeys(r["method"] for r in data["rows"]))
    rows = []
    for setting in settings:
        found = {r["method"]: r for r in data["rows"]
                 if (r["family"], r["sampler"], r["steps"], r["budget"]) == setting}  # fmt: skip
        best = max(r["psnr"] for r in found.values() if r["computed"] <= setting[3])
        cells = []
        for method in methods:
            row = found[method]
            text = f"{row['psnr']:.1f} ({row['worst']:.1f})"
            text = f"**{text}**" if row["psnr"] == best and row["computed"] <= setting[3] else text
            cells.append(text if row["computed"] == setting[3] else f"{text} at {row['computed']:g}")
        family, sampler, steps, budget = setting
        rows.append([f"{FAMILIES[family]}, {sampler}: {steps}, {budget}", *cells])
    captions = ", ".join(f"{count} of {name}" for name, count in data["captions"].items())
    note = (
        f"PSNR in dB to the full run, mean and worst; held-out captions: {captions}. Thresholds of both EasyCaches and "
        "of LazyCache were found for every caption and budget by trying; the others compute as many calls as asked. "
    )
    head = ["family, sampler: calls, computed", *methods]
    return _table(head, rows) + "\n\n" + note + _source("cpu/comfyui", data)
