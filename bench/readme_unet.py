"""The README's table of the U-Net family; ``readme.py`` puts it in its place."""

from __future__ import annotations

from typing import Any

from readme_forecast import _read, _source, _table

BUDGETS = (9, 13, 17, 22, 27)
METHODS = ("Forecast", "Forecast uncalibrated", "LeMiCa", "EasyCache", "Schedule residual", "fewer steps")
NAMES = {"dpm++": "DPM++ 2M Karras", "euler-a": "Euler ancestral"}


def _dB(row: dict[str, Any]) -> str:  # noqa: N802  the unit's name
    return f"{row['psnr']:.1f} ({row['psnr_worst']:.1f})"


def unet() -> str:
    """Fidelity at equal computed steps, and the rivals at theirs."""
    data = _read("cpu/unet")
    of = {(r["scheduler"], r["method"]): r for r in data["rows"]}
    rows = [
        [f"`{name}`" if name != "fewer steps" else name]
        + [_dB(of["ddim", f"{name} {b}"]) if ("ddim", f"{name} {b}") in of else "" for b in BUDGETS]
        for name in METHODS
    ]
    table = _table(["computed steps of 50, DDIM", *map(str, BUDGETS)], rows)
    others = [r for r in data["rows"] if r["method"].startswith(("DeepCache", "MixCache"))]
    beside = _table(
        ["other costs, DDIM", "computed steps", "PSNR dB (worst)", "SSIM"],
        [[r["method"], f"{r['steps']:.1f}", _dB(r), f"{r['ssim']:.4f}"] for r in others],
    )
    lines = [
        [NAMES[s], name, *(_dB(of[s, f"{name} {b}"]) for b in (9, 17))]
        for s in NAMES
        for name in ("Forecast", "Forecast uncalibrated", "EasyCache", "fewer steps")
    ]
    solvers = _table(["solver", "", "9 steps", "17 steps"], lines)
    said = "; ".join(f"{name} {what}" for name, what in data["rivals"].items())
    note = (
        f"PSNR in dB of the pictures to the full runs, mean (worst) of {len(data['prompts'])} held-out captions; a "
        f"full call takes {data['full_seconds']:.2f} s here. DeepCache's steps count what its skipped ones compute. Of "
        f"the rivals: {said}. "
    )
    parts = [table, beside, solvers, note + _source("cpu/unet", data), *_two_models()]
    return "\n\n".join(parts)


def _two_models() -> list[str]:
    """The methods that also run a small U-Net."""
    data = _read("cpu/unet_small")
    rows = [[r["method"], f"{r['steps']:.1f}", _dB(r), f"{r['ssim']:.4f}"] for r in data["rows"]]
    table = _table(["with a small U-Net, DDIM", "cost in full steps", "PSNR dB (worst)", "SSIM"], rows)
    note = (
        f"A small U-Net's forward (a tenth of the weights) takes {data['small_share']:.2f} of a large one's time at "
        "this size on a CPU, and is counted so; on models of real size it is a far smaller share. "
    )
    return [table, note + _source("cpu/unet_small", data)]
