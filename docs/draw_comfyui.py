"""Draws the graph of the example workflow: ``python docs/draw_comfyui.py`` writes docs/comfyui.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "integrations" / "comfyui" / "example_workflows" / "vaccel.json"
#: Colours of what goes along a link.
COLOURS = {
    "MODEL": "#7a5ccc", "CLIP": "#c9a400", "VAE": "#d9534f", "CONDITIONING": "#e08a1e", "LATENT": "#c85fb0",
    "IMAGE": "#3d8fd1", "STRING": "#4f9d5d", "*": "#4f9d5d",
}  # fmt: skip
TITLE, ROW = 26, 20
NAMES = {"VaccelAccelerate": "vaccel accelerate", "VaccelTrace": "vaccel trace"}
INPUTS = {"VaccelAccelerate": ("method", "aim", "amount", "start_percent", "end_percent", "calls"),
          "KSampler": ("seed", "control", "steps", "cfg", "sampler", "scheduler", "denoise")}  # fmt: skip


def port(node: dict[str, Any], number: int, *, out: bool) -> tuple[float, float]:
    """Where a link ends at a node."""
    x, y = node["pos"]
    return x + node["size"][0] * out, y + TITLE + ROW * (number + 0.7)


def values(node: dict[str, Any]) -> list[str]:
    given, names = node["widgets_values"], INPUTS.get(node["type"])
    return [f"{name}: {value}" for name, value in zip(names, given, strict=True)] if names else list(map(str, given))


def height(node: dict[str, Any]) -> float:
    rows = max(len(node["inputs"]), len(node["outputs"])) + len(values(node))
    return TITLE + ROW * (rows + 0.5)


def draw(axes: Any, node: dict[str, Any]) -> None:
    (x, y), width, ours = node["pos"], node["size"][0], node["type"] in NAMES
    face, edge, line = ("#f4f1fb", "#7a5ccc", 1.8) if ours else ("#f7f7f7", "#999999", 0.9)
    box = FancyBboxPatch((x, y), width, height(node), boxstyle="round,pad=0,rounding_size=8", zorder=2)
    box.set(facecolor=face, edgecolor=edge, linewidth=line)
    axes.add_patch(box)
    title = node.get("title") or NAMES.get(node["type"], node["type"])
    axes.text(x + 10, y + TITLE / 2 + 3, title, va="center", fontsize=8.5, weight="bold", zorder=3)
    for out, side in ((False, "inputs"), (True, "outputs")):
        for number, each in enumerate(node[side]):
            px, py = port(node, number, out=out)
            axes.plot(px, py, "o", color=COLOURS[each["type"]], markersize=4.5, zorder=4)
            axes.text(px + (-10 if out else 10), py, each["name"], ha="right" if out else "left", va="center",
                      fontsize=7, zorder=3)  # fmt: skip
    top = y + TITLE + ROW * (max(len(node["inputs"]), len(node["outputs"])) + 0.7)
    for number, text in enumerate(values(node)):
        axes.text(x + 18, top + ROW * number, text, va="center", fontsize=7, color="#444444", zorder=3)


def main() -> None:
    workflow = json.loads(WORKFLOW.read_text())
    nodes = {node["id"]: node for node in workflow["nodes"]}
    figure, axes = plt.subplots(figsize=(14, 4.4))
    for node in nodes.values():
        draw(axes, node)
    for _, source, out, target, into, kind in workflow["links"]:
        (x0, y0), (x1, y1) = port(nodes[source], out, out=True), port(nodes[target], into, out=False)
        bend = max(40.0, abs(x1 - x0) / 2)
        curve = Curve([(x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1, y1)], [Curve.MOVETO, *[Curve.CURVE4] * 3])
        axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=COLOURS[kind], linewidth=1.4, zorder=1))
    axes.set_xlim(-20, max(n["pos"][0] + n["size"][0] for n in nodes.values()) + 20)
    axes.set_ylim(max(n["pos"][1] + height(n) for n in nodes.values()) + 20, 30)
    axes.set_axis_off()
    figure.savefig(ROOT / "docs" / "comfyui.png", dpi=110, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
