"""Pictures of a distillation: its losses over the iterations."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .outputs import write_bytes

_LEFT_OUT = ("iteration", "seconds")


def losses(log: Path, picture: Path, window: int = 25) -> None:
    """Draws every value of ``log.jsonl``: as it was, and its running mean over ``window`` iterations.

    Replaces the picture in one move; draws none of an empty log.  Raises ``OSError`` that names the file.
    """
    lines = [json.loads(s) for s in log.read_text().splitlines()]
    names = [n for n in lines[0] if n not in _LEFT_OUT] if lines else []
    if not names:
        return
    figure = Figure(figsize=(3.6 * len(names), 2.9))
    axes = figure.subplots(1, len(names), squeeze=False)
    at = np.array([line["iteration"] for line in lines])
    for axis, name in zip(axes[0], names, strict=True):
        values = np.array([line.get(name, np.nan) for line in lines], dtype=float)
        axis.plot(at, values, color="0.75", linewidth=0.7)
        if len(values) >= window:
            mean = np.convolve(values, np.ones(window) / window, "valid")
            axis.plot(at[window - 1 :], mean, color="#24456b")
        if (values > 0).all():
            axis.set_yscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, dpi=100, format="png", metadata={"Software": None})
    write_bytes(picture, content.getvalue())
