"""The README's tables of Forecast and Auto; ``readme.py`` puts them in their places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
OURS = "Forecast"


def _read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _source(name: str, data: dict) -> str:
    return f"`bench/results/{name}.json`, made by `{data['command']}` at commit {data['commit'][:10]}."


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def _cells(summary: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in summary:
        if "psnr" in row:
            found.setdefault(row["rival"], {})[row["budget"]] = row
    return found


def _psnr(row: dict[str, Any] | None, budget: int | None = None) -> str:
    if row is None:
        return ""
    cost = row.get("cost", budget)
    off = f" at {cost:.1f}" if budget is not None and abs(cost - budget) > 0.5 else ""
    return f"{row['psnr']:.1f} ({row['psnr_worst']:.1f}){off}"


def forecast() -> str:
    """PSNR at equal cost: ours, and every rival."""
    ours, rivals = _read("cpu/forecast"), _read("cpu/forecast_rivals")
    mine, others = _cells(ours["summary"]), _cells(rivals["summary"])
    budgets = sorted(mine[OURS])
    rows = [[f"**{name}**", *(_psnr(mine[name].get(b), b) for b in budgets)] for name in (OURS, "without calibration")]
    rows += [[name, *(_psnr(cells.get(b), b) for b in budgets)] for name, cells in others.items()]
    ahead = {b: _ahead(mine[OURS][b], [c[b] for c in others.values() if b in c]) for b in budgets}
    rows.append(["ahead of the best rival", *(f"{ahead[b][0]:+.1f} ({ahead[b][1]:+.1f})" for b in budgets)])
    captions = ", ".join(f"{100 * mine[OURS][b]['caption']:.0f} %" for b in budgets)
    ssim = ", ".join(f"{mine[OURS][b]['ssim']:.4f}" for b in budgets)
    note = (
        "PSNR in dB (worst prompt) at so many of 50 full steps, where a cost differs it is written; "
        f"{len(rivals['captions'])} held-out captions. Forecast's SSIM: {ssim}; captions right: {captions} (in full "
        f"{100 * rivals['full']['caption']:.0f} %). "
    )
    source = _source("cpu/forecast", ours) + " " + _source("cpu/forecast_rivals", rivals)
    return _table(["", *map(str, budgets)], rows) + "\n\n" + note + source


def _ahead(mine: dict[str, Any], others: list[dict[str, Any]]) -> tuple[float, float]:
    """dB ahead of the best mean and of the best worst prompt among the rivals, each its own."""
    return tuple(mine[key] - max(row[key] for row in others) for key in ("psnr", "psnr_worst"))


def forecast_variants() -> str:
    """What each part of it does; and what a calibration costs."""
    data = _read("cpu/forecast")
    cells = _cells(data["summary"])
    budgets = sorted(cells[OURS])
    rows = [[name, *(_psnr(row.get(b), b) for b in budgets)] for name, row in cells.items()]
    cost = data["calibration"]
    exact = _read("cpu/lemica_cost")["variants"]["exact"]["forwards"]
    beside = f"; LeMiCa's exact calibration takes {exact}"
    note = (
        f"Forecast is K = 2, per channel, lexicographic minimax, {cost['samples']} samples. A sample takes "
        f"{cost['forwards_recording']} forwards ({_middle(cost['seconds_recording'])} s), with replays for error "
        f"growth and trials {_middle(cost['forwards'])} ({_middle(cost['seconds'])} s){beside}. "
    )
    return _table(["", *map(str, budgets)], rows) + "\n\n" + note + _source("cpu/forecast", data)


def _middle(values: list[float]) -> str:
    return f"{sorted(values)[len(values) // 2]:.0f}"


def forecast_settings() -> str:
    data = _read("cpu/forecast_settings")
    names = ("Forecast", "without calibration", "fewer steps")
    budgets = sorted({row["budget"] for row in data["table"]})
    found = {(row["setting"], row["budget"]): row for row in data["table"]}
    settings = dict.fromkeys(row["setting"] for row in data["table"])
    rows = [[s, *(" / ".join(f"{found[s, b][name]['psnr']:.1f}" for name in names) for b in budgets)] for s in settings]
    note = f"PSNR in dB of {', '.join(names)}, mean of {len(data['table'][0]['Forecast']['each'])} held-out captions. "
    return _table(["", *map(str, budgets)], rows) + "\n\n" + note + _source("cpu/forecast_settings", data)


def forecast_ood() -> str:
    data = _read("cpu/forecast_ood")
    names = [key for key, value in data["table"][0].items() if isinstance(value, dict)]
    rows = [
        [f"{row['prompts']}, {row['budget']}", *(_guarded(row[name], row["budget"]) for name in names)]
        for row in data["table"]
    ]
    note = "PSNR in dB (worst prompt), and the steps computed where they are more than planned. "
    return _table(["", *names], rows) + "\n\n" + note + _source("cpu/forecast_ood", data)


def _guarded(found: dict[str, Any], budget: int) -> str:
    more = f", {found['steps']:.1f} steps" if found["steps"] != budget else ""
    return _psnr(found) + more


def auto() -> str:
    data = _read("cpu/auto")
    rows = [
        [f"{r['asked']:g}x, {r['how']}", f"{r['delivered']:.2f}x ({r['quartiles'][0]:.2f} to {r['quartiles'][1]:.2f})",
         f"{min(r['budgets'])} to {max(r['budgets'])}", ""]
        for r in data["speed"]
    ]  # fmt: skip
    rows += [
        [f"{r['asked']:g} dB", f"{100 * r['reached']:.0f} % of {len(r['each'])} prompts", f"{r['steps']:.0f}",
         f"{r['psnr']:.1f} ({r['psnr_worst']:.1f})"]
        for r in data["fidelity"]
    ]  # fmt: skip
    note = f"Wall time of whole calls, each beside one in full, {data['threads']} threads; medians (quartiles). "
    header = ["asked", "delivered", "full steps", "PSNR dB (worst)"]
    return _table(header, rows) + "\n\n" + note + _source("cpu/auto", data)


def forecast_memory() -> str:
    data = _read("cpu/forecast_memory")
    rows = [[row["method"], f"{row['bytes'] / 2**20:.2f} MiB"] for row in data["demo"]]
    for row in data["wan_14b"]:
        size = f"Wan 14B, {row['size']}, 81 frames, bf16 (computed)"
        rows.append([f"{size}: Forecast", f"{row['Forecast'] / 2**20:.0f} MiB"])
        rows.append([f"{size}: one tensor of hidden states", f"{row['hidden_states_tensor'] / 2**20:.0f} MiB"])
        rows.append([f"{size}: a run's velocities, while learning", f"{row['recording'] / 2**20:.0f} MiB"])
    return _table(["", "held"], rows) + "\n\n" + _source("cpu/forecast_memory", data)
