"""The README's pictures: ``python bench/pictures.py animation | curve``, into docs/pictures/.

The animation is made by the shipped family: the full model, Forecast with 20 of 50 steps computed, and the same solver
with 20 steps, for the first held-out captions, and what each is off by, amplified.  The curve is of bench/results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "pictures"
STEPS, SPEED, CAPTIONS, SCALE, GAIN = 50, 2.5, 3, 4, 8
GAP, LINE = 6, 20
#: Of bench/results/cpu/rivals_glyphs_fresh.json.
SHOWN = ("Forecast", "Forecast.prior", "SeaCache", "L2P", "DPCache", "TaylorSeer", "fewer steps")
THEMES = {"light": ("#1f2328", "#d0d7de", "#0969da"), "dark": ("#e6edf3", "#30363d", "#58a6ff")}
app = typer.Typer(add_completion=False, help=__doc__)


def clips() -> tuple[list[str], dict[str, list[np.ndarray]], dict[str, str]]:
    """(captions, clips by column, what stands over each column)."""
    import vaccel
    from vaccel.demo import family, shapes
    from vaccel.evaluate.clips import frames_of

    shipped = family.load()
    captions = shapes.held_out_captions(CAPTIONS)

    def run(caption: str, steps: int = STEPS) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return frames_of(shipped.pipe(caption, generator=generator, **{**shipped.call, "num_inference_steps": steps}))

    budget = round(STEPS / SPEED)
    forecast = vaccel.Forecast.load(shipped.folder / "forecast.json", budget=budget)
    made = {"full": [run(c) for c in captions], "fewer": [run(c, budget) for c in captions]}
    with vaccel.accelerate(shipped.pipe, forecast):
        made["fast"] = [run(c) for c in captions]
    told = {"full": f"full: {STEPS} steps", "fast": f"vaccel: {budget} computed", "fewer": f"{budget} steps"}
    return captions, made, told


@app.command()
def animation() -> None:
    """Make docs/pictures/side_by_side.webp."""
    captions, made, told = clips()
    columns = ["full", "fast", "fewer"]
    height, width = made["full"][0].shape[1] * SCALE, made["full"][0].shape[2] * SCALE
    across = 5 * width + 4 * GAP + 2 * GAP
    down = CAPTIONS * (height + LINE + GAP) + 2 * LINE
    font = ImageFont.load_default(14)
    frames = []
    for f in range(len(made["full"][0])):
        canvas = Image.new("RGB", (across, down), "white")
        draw = ImageDraw.Draw(canvas)
        heads = [*(told[c] for c in columns), f"vaccel, off by (x{GAIN})", f"fewer, off by (x{GAIN})"]
        for c, head in enumerate(heads):
            draw.text((GAP + c * (width + GAP), 6), head, fill="black", font=font)
        for row, caption in enumerate(captions):
            top = 2 * LINE + row * (height + LINE + GAP)
            draw.text((GAP, top - LINE + 2), caption, fill="#57606a", font=font)
            full = made["full"][row][f]
            shown = [made[c][row][f] for c in columns]
            shown += [np.abs(made[c][row][f] - full) * GAIN for c in columns[1:]]
            for c, frame in enumerate(shown):
                tile = Image.fromarray((np.clip(frame, 0, 1) * 255).astype(np.uint8))
                tile = tile.resize((width, height), Image.NEAREST)
                canvas.paste(tile, (GAP + c * (width + GAP), top))
        frames.append(canvas)
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "side_by_side.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=90, loop=0, lossless=True)
    psnr = {c: [10 * np.log10(1 / np.mean((a - b) ** 2)) for a, b in zip(made[c], made["full"], strict=True)]
            for c in columns[1:]}  # fmt: skip
    print(path, {c: [round(float(v), 1) for v in values] for c, values in psnr.items()})


@app.command()
def curve() -> None:
    """Make docs/pictures/curve_light.svg and curve_dark.svg."""
    data = json.loads((ROOT / "bench" / "results" / "cpu" / "rivals_glyphs_fresh.json").read_text())
    OUT.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        print(drawn(data, theme))


def drawn(data: dict[str, Any], theme: str) -> Path:
    """The curve in one theme."""
    ink, lines, ours = THEMES[theme]
    figure, axes = plt.subplots(figsize=(8, 4.2))
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    others = iter(plt.get_cmap("Set2").colors)
    for name in SHOWN:
        points = sorted((data["steps"] / r["steps"], r["psnr"]) for r in data["rows"] if r["rival"] == name)
        mine = name.startswith("Forecast")
        label = {"Forecast": "vaccel Forecast, calibrated", "Forecast.prior": "vaccel Forecast, shipped prior"}.get(
            name, name
        )
        axes.plot(
            *zip(*points, strict=True), marker="o", markersize=4, linewidth=2.6 if mine else 1.4, label=label,
            color=ours if mine else next(others), linestyle="--" if name == "Forecast.prior" else "-",
        )  # fmt: skip
    axes.set_xlabel("times fewer forwards of the model", color=ink)
    axes.set_ylabel("PSNR to the full run, dB", color=ink)
    axes.set_title(f"{len(data['prompts'])} captions that nothing was chosen on (glyphs, DDIM, 50 steps)", color=ink,
                   fontsize=10)  # fmt: skip
    axes.tick_params(colors=ink)
    axes.grid(color=lines, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_color(lines)
    axes.legend(frameon=False, labelcolor=ink, fontsize=9)
    path = OUT / f"curve_{theme}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    app()
