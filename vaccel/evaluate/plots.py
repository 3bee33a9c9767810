"""The report's plots, as SVG text."""

from __future__ import annotations

import io
import itertools
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, NullLocator

from ..methods.lemica import edges
from .fidelity import EQUAL
from .observations import Observations


def svg_text(figure: Any) -> str:
    """A figure as SVG, without what stands before ``<svg``; closes it."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", transparent=True)  # on light and on dark pages
    plt.close(figure)
    return out.getvalue()[out.getvalue().index("<svg") :]


def label(text: str) -> str:
    """Somebody's own text as Matplotlib takes it: a "$" begins no formula, what cannot be printed is spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text).replace("$", r"\$")


def cost_fidelity(
    summary: list[dict[str, Any]], small: dict[str, Any] | None, size: tuple[float, float] = (9, 5)
) -> str:
    """Speedup against PSNR (of sounds SNR), one line a method (its points sorted by speedup); ``size`` in inches."""
    figure, axes = plt.subplots(figsize=size)
    sound = all(entry["psnr"] is None for entry in summary)
    styles = {"vaccel": ("o", "-", 2.0), "diffusers": ("s", "--", 1.2), "steps": ("x", ":", 1.5)}
    for number, group in enumerate(dict.fromkeys(entry["group"] for entry in summary)):
        points = sorted((e for e in summary if e["group"] == group), key=lambda e: e["speedup"])
        points = [p for p in points if p["decibels"] < EQUAL]  # a clip equal to the full model's has no finite PSNR
        if not points:
            continue
        marker, line, width = styles[points[0]["kind"]]
        axes.plot(
            [p["speedup"] for p in points],
            [p["decibels"] for p in points],
            marker=marker,
            linestyle=line,
            linewidth=width,
            color=plt.get_cmap("tab10")(number % 10),
            label=label(group),
        )
    if small is not None:
        alone = small["snr" if sound else "psnr"]
        axes.plot([small["speedup"]], [alone], "k*", markersize=12, linestyle="", label="small model alone")
    axes.set_xscale("log")  # twice as fast is as far everywhere
    ticks = [0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    low, high = axes.get_xlim()
    few = sum(low <= tick <= high for tick in ticks) < 4  # a few contenders of about the same speed
    axes.xaxis.set_major_locator(FixedLocator([round(0.1 * n, 1) for n in range(5, 100)] if few else ticks))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("speedup in wall time (full model = 1)")
    axes.set_ylabel("SNR to the full model's sound, dB" if sound else "PSNR to the full model's clip, dB")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:  # clips that are all equal to the full model's have no point
        axes.legend(fontsize=8, loc="best" if few else "upper right")
    return svg_text(figure)


def error_graph(artifact: dict[str, Any], paths: dict[str, tuple[int, ...]]) -> str:
    """LeMiCa's graph: the error of computing step i and then step i + gap, and the edges that schedules take in it.

    Args:
        artifact: a LeMiCa calibration.
        paths: name -> full steps.
    """
    measured = [e for e in edges(artifact) if e.end - e.start > 1]
    gaps, steps = max(e.end - e.start for e in measured), artifact["num_steps"]
    grid = np.full((gaps - 1, steps), np.nan)
    for edge in measured:
        grid[edge.end - edge.start - 2, edge.start] = edge.error
    figure, axes = plt.subplots(figsize=(12, 0.45 * gaps + 1.6))
    norm = LogNorm(np.nanmin(grid[grid > 0]), np.nanmax(grid))
    image = axes.pcolormesh(np.arange(steps + 1) - 0.5, np.arange(2, gaps + 2) - 0.5, grid, norm=norm, cmap="viridis")
    figure.colorbar(image, label="mean |x0 - x0 in full|", pad=0.01)
    for number, (name, full) in enumerate(paths.items()):
        taken = [(i, j - i) for i, j in itertools.pairwise(full) if j - i > 1]
        shift = 0.5 * ((number + 1) / (len(paths) + 1) - 0.5)
        axes.plot(
            [i for i, _ in taken], [gap + shift for _, gap in taken], marker="os^Dv"[number % 5], color="white",
            markerfacecolor=plt.get_cmap("tab10")(number % 10), linewidth=0.6, markersize=6, label=label(name),
        )  # fmt: skip
    axes.set_xlabel("computed step i")
    axes.set_ylabel("steps to the next")
    axes.set_yticks(range(2, gaps + 1))
    axes.legend(fontsize=7, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), facecolor="0.6")
    return svg_text(figure)


def noise_levels(curves: dict[str, dict[str, Any]]) -> str:
    """Consistency loss and its gradient's norm by noise level, most noise at the left (arXiv 2506.03123, Figure 2 (b)).

    Args:
        curves: name -> what ``vaccel.distill.diagnosis.diagnose`` returns.
    """
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.8))
    for axis, key, title in zip(axes, ("loss", "gradient"), ("consistency loss", "gradient norm"), strict=True):
        for number, (name, curve) in enumerate(curves.items()):
            axis.plot(
                curve["sigma"], curve[key], ".-", color=plt.get_cmap("tab10")(number), linewidth=1.2, label=label(name)
            )
        for boundary in {curve["boundary"] for curve in curves.values()}:
            axis.axvline(boundary, color="0.4", linestyle="--", linewidth=1)
            for text, side, offset in (("semantic", "right", -2), ("detail", "left", 2)):
                axis.annotate(
                    text, (boundary, 0.04), xycoords=("data", "axes fraction"), xytext=(offset, 0),
                    textcoords="offset points", ha=side, rotation=90, fontsize=8, color="0.3",
                )  # fmt: skip
        axis.set_yscale("log")
        axis.set_xlim(1.04, -0.04)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("noise level sigma (sampling goes from left to right)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return svg_text(figure)


def observations(seen: Observations) -> str:
    """Direction, magnitude ratio, and conditional against unconditional magnitude, over the steps."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    for name, values in seen.direction.items():
        axes[0].plot(values, label=name, linewidth=2 if name == "small" else 1.2)
    for name, values in seen.ratio.items():
        axes[1].plot(values, label=name, linewidth=2 if name == "small" else 1.2)
    axes[2].plot(seen.small_cond, label="conditional")
    axes[2].plot(seen.small_uncond, "--", label="unconditional")
    titles = ("cosine with the large model's output", "norm of the large output / norm of ...", "small model's norm")
    for axis, title in zip(axes, titles, strict=True):
        axis.axvspan(0.2 * seen.steps, 0.95 * seen.steps, color="0.93", zorder=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return svg_text(figure)
