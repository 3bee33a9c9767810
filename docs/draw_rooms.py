"""Draws the rooms from the code's own imports: ``python docs/draw_rooms.py`` writes docs/pictures/rooms.svg."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from test_floors import imports  # noqa: E402

PACKAGE = ROOT / "vaccel"
#: From the ground up: room -> what it is, in a few words.
STOREYS: tuple[dict[str, str], ...] = (
    {"csrc": "C++ and CUDA kernels, the schedule solver", "kernels": "Triton kernels"},
    {"reference": "the fp64 truth", "ops": "fused formulas, by kernels that proved themselves",
     "parallel": "ranks of one mind"},
    {"actions": "what stands in for a forward", "cache": "what computed steps leave", "signals": "what rules watch"},
    {"models": "any denoiser, from outside", "planning": "levels, schedules, calibrations"},
    {"methods": "one file a method: the rule that picks an action"},
    {"engine": "a run: carries actions out, captures steps, keeps the trace"},
    {"experts": "distilled experts, as files and on a transformer"},
    {"integrations": "diffusers, ComfyUI: whose call it is, where a step is"},
    {"api": "accelerate and its handle", "denoiser": "hand-written loops", "continuous": "many of them in a batch"},
    {"calibrate": "measure", "distill": "train", "evaluate": "compare", "explain": "a trace",
     "exports": "hosts", "batch": "many clips", "cluster": "by Ray", "serving": "in vLLM",
     "demo": "families", "app": "a page", "cli": "commands"},
)  # fmt: skip
COLOURS = (
    "#86694a", "#a06f3c", "#b98233", "#728f4a", "#3f8763", "#2f8080", "#3578a0", "#4668b0", "#6a5ab0", "#8f559c"
)  # fmt: skip
WIDTH, HEIGHT, GAP, STEP = 100.0, 7.6, 2.0, 12.6
NATIVE = ("*.cpp", "*.cu", "*.cuh", "*.h")


def lines(room: str) -> int:
    """How long a room is."""
    if room in ("csrc", "kernels"):
        found = [p for kind in (*NATIVE, "*.py") for p in (ROOT / room).rglob(kind)]
    else:
        found = list((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    return sum(len(path.read_text().splitlines()) for path in found)


def boxes() -> dict[str, tuple[float, float, float, int]]:
    """room -> left edge, lower edge, width, storey."""
    found = {}
    for storey, rooms in enumerate(STOREYS):
        sizes = [lines(room) ** 0.5 for room in rooms]
        whole, x = WIDTH - GAP * (len(rooms) - 1), 0.0
        least = min(13.0, 0.9 * whole / len(rooms))
        free = whole - least * len(rooms)
        for room, size in zip(rooms, sizes, strict=True):
            width = least + free * size / sum(sizes)
            found[room] = (x, storey * STEP, width, storey)
            x += width + GAP
    return found


def arrows(rooms: dict[str, Any]) -> Counter[tuple[str, str]]:
    """(a room, one that it imports from) -> by how many files."""
    found: Counter[tuple[str, str]] = Counter({("ops", "csrc"): 4, ("ops", "kernels"): 4, ("planning", "csrc"): 2})
    for room in rooms:
        for path in list((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]:
            if path.exists():
                found.update((room, other) for other in imports(path) if other in rooms and other != room)
    return found


def draw(path: Path) -> None:
    places = boxes()
    figure, axes = plt.subplots(figsize=(11, 9.8))
    for (above, below), count in sorted(arrows(places).items()):
        (x, y, width, storey), (to_x, to_y, to_width, to_storey) = places[above], places[below]
        if to_storey >= storey:
            continue  # within a storey
        middle, target = x + width / 2, to_x + to_width / 2
        start = (middle + (target - middle) * 0.25 * min(1, width / 40), y)
        end = (target + (middle - target) * 0.6 * min(1, to_width / 60), to_y + HEIGHT)
        axes.add_patch(FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=9, linewidth=0.6 + 0.12 * min(count, 12), zorder=1,
            alpha=0.55 if storey - to_storey == 1 else 0.22, shrinkA=0, shrinkB=0, color=COLOURS[storey],
            connectionstyle=f"arc3,rad={0.04 * (1 if target > middle else -1)}",
        ))  # fmt: skip
    for room, (x, y, width, storey) in places.items():
        shape = FancyBboxPatch((x, y), width, HEIGHT, boxstyle="round,pad=0,rounding_size=1.2", zorder=2)
        shape.set(facecolor=COLOURS[storey], edgecolor="none")
        axes.add_patch(shape)
        name = f"{room}.py" if (PACKAGE / f"{room}.py").exists() else room
        about = STOREYS[storey][room]
        written = {"ha": "center", "va": "center", "color": "white", "zorder": 3}
        large, small = (11, 7.8) if width > 12 else (9, 7.8) if width > 8.5 else (7.8, 6.8)
        axes.text(x + width / 2, y + 5.2, name, weight="bold", size=large, **written)
        axes.text(x + width / 2, y + 2.4, about, size=small, **written)
    for storey in range(len(STOREYS)):
        axes.text(-1.5, storey * STEP + HEIGHT / 2, str(storey), ha="right", va="center", color="0.5", size=10)
    axes.set(xlim=(-4, WIDTH + 0.5), ylim=(-1, (len(STOREYS) - 1) * STEP + HEIGHT + 1))
    axes.axis("off")
    figure.savefig(path, transparent=True, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    matplotlib.rcParams["svg.hashsalt"] = "rooms"
    draw(ROOT / "docs" / "pictures" / "rooms.svg")


if __name__ == "__main__":
    main()
