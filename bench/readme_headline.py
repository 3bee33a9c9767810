"""The README's first figures; ``readme.py`` puts them in their place."""

from __future__ import annotations

from readme_forecast import _read
from readme_rivals import MINE


def headline() -> str:
    """Forecast beside the best rival and fewer steps, at two speeds, on captions that nothing was chosen on."""
    data = _read("cpu/rivals_glyphs_fresh")
    of = {(r["rival"], r["budget"]): r["psnr"] for r in data["rows"]}
    lines = []
    for budget in (17, 13):
        others = [(p, n) for (n, b), p in of.items() if b == budget and n not in (*MINE, "fewer steps")]
        best, name = max(others)
        lines.append(
            f"{data['steps'] / budget:.1f} times fewer forwards: **{of['Forecast', budget]:.1f} dB** to the full run "
            f"calibrated, {of['Forecast.prior', budget]:.1f} by the shipped prior; the best of {len(others)} "
            f"rivals, {name}, {best:.1f}; fewer steps {of['fewer steps', budget]:.1f}."
        )
    note = (
        f"PSNR of {len(data['prompts'])} prompts that nothing was chosen on, on a trained U-Net that the prior knows; "
        "one that it does not know costs up to a few dB ([levels](docs/methods/forecast.md)). Worst prompts, other "
        "budgets and where a rival is ahead: [here](docs/forecast-results.md)."
    )
    return "\n".join(f"- {line}" for line in lines) + "\n\n" + note


def pipelines() -> str:
    """How many classes of pipelines are accelerated and right, as docs/pipelines.md counts them."""
    found = _read("cpu/conformance")["pipelines"]
    classes = {one["name"].split("-")[0] for one in found}
    good = {one["name"].split("-")[0] for one in found if "raises" not in one and not one["wrong"]}
    return (
        "[Every pipeline of diffusers that can be built offline](docs/pipelines.md), compared with its own loop bit "
        f"for bit: {len(good)} of {len(classes)} classes, video, images and sound, cascades and modular ones, whatever "
        "the solver."
    )
