"""Fills the tables of README.md and docs/ from the JSON under bench/results: ``python bench/readme.py [--check]``.

Text between ``<!-- figures: name -->`` and ``<!-- end -->`` is generated; nothing else is touched.  ``--check`` exits
with 1 where a page is not what the JSON says.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import readme_comfyui
import readme_forecast
import readme_headline
import readme_kernels
import readme_levels
import readme_promise
import readme_rivals
import readme_soak
import readme_terrain
import readme_unet

from vaccel.ops._dispatch import ONE_OPERATION

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
TABLES = (
    readme_headline, readme_kernels, readme_unet, readme_levels, readme_promise, readme_rivals, readme_terrain,
    readme_forecast, readme_comfyui, readme_soak,
)  # fmt: skip


def _read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _source(name: str, data: dict) -> str:
    return f"`bench/results/{name}.json`, made by `{data['command']}` at commit {data['commit'][:10]}."


def family() -> str:
    """Accuracy and cost of the demo family."""
    data = _read("cpu/family")
    lines = ["| | caption right | colour | kind | direction | ms a forward |", "| --- | --- | --- | --- | --- | --- |"]
    for name in ("large", "small"):
        a = data["accuracy"][name]
        cells = [f"{100 * a[k]:.0f} %" for k in ("correct", "colour", "kind", "direction")]
        lines.append(f"| {name} | {' | '.join(cells)} | {data['forward_ms'][name][1]:.1f} |")
    checker = data["checker"]
    note = (
        f"{data['captions']} held-out captions, {data['steps']} steps, guidance {data['guidance_scale']}. The large "
        f"model costs {data['cost_ratio']['median']:.1f} times the small one. The checker says "
        f"{100 * checker['true']['correct']:.1f} % of true clips and {100 * checker['shuffled']['correct']:.1f} % of "
        "clips with another clip's caption are right. "
    )
    return "\n".join(lines) + "\n\n" + note + _source("cpu/family", data)


def methods() -> str:
    """Speed beside fidelity of every contender."""
    data = _read("cpu/methods")
    header = "| method | speedup | large + small forwards | PSNR dB | worst | SSIM | caption |"
    lines = [header, "| --- | --- | --- | --- | --- | --- | --- |"]
    full = data["full"]["checks"]["caption"]
    lines.append(f"| full model | 1.00 | {2 * data['call']['num_inference_steps']} + 0 | | | | {100 * full:.0f} % |")
    for e in data["summary"]:
        label = re.sub(r"artifact='[^']*', ", "", e["contender"])
        forwards = f"{e['forwards']['large']:.0f} + {e['forwards']['small']:.0f}"
        numbers = f"{e['psnr']:.1f} | {e['psnr_worst']:.1f} | {e['ssim']:.3f} | {100 * e['checks']['caption']:.0f} %"
        lines.append(f"| `{label}` | {e['speedup']:.2f} | {forwards} | {numbers} |")
    note = f"{len(data['prompts'])} held-out captions, median speedup over them. "
    return "\n".join(lines) + "\n\n" + note + _source("cpu/methods", data)


def overhead() -> str:
    """Microseconds a call over the bare model."""
    data = _read("cpu/overhead")
    timed = [e for e in data["contenders"] if e["kind"] != "reference"]
    rows: dict[str, dict[str, dict]] = {}
    for entry in timed:
        rows.setdefault(entry["name"], {})[entry["kind"]] = entry
    lines = [
        "| | a skipped call, us over what still runs | a computed call, us over the bare model |",
        "| --- | --- | --- |",
    ]

    def cell(entry: dict | None) -> str:
        return f"{entry['over_bare_us']:.0f} ({entry['over_bare_iqr_us']:.0f})" if entry else ""

    for name, kinds in rows.items():
        lines.append(f"| {name} | {cell(kinds.get('skipped'))} | {cell(kinds.get('computed'))} |")
    note = "Medians, interquartile range in brackets; decisions included, parts of the model that still run left out. "
    return "\n".join(lines) + "\n\n" + note + _source("cpu/overhead", data)


def kernels() -> str:
    """The fused ops beside eager torch and torch.compile, on the CPU, at one size."""
    data = _read("cpu/kernels")
    lines = [
        "| op | dtype | kernel, us | eager, us | times eager | torch.compile, us | of copy bandwidth |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in data["rows"]:
        if row["shape"] == "Wan 480p, latents" and row["op"] not in ONE_OPERATION:
            kernel, eager, compiled = (row[name]["median"] for name in ("default", "eager", "compiled"))
            cells = [f"`{row['op']}`", row["dtype"], f"{kernel:.0f}", f"{eager:.0f}", f"{eager / kernel:.1f}"]
            lines.append("| " + " | ".join([*cells, f"{compiled:.0f}", f"{100 * row['of_copy']:.0f} %"]) + " |")
    note = (
        f"Wan's latents at 480p, [1, 16, 21, 60, 104]; medians on {data['cpu']}, {data['cores']} cores; the bandwidth "
        "counts what a formula has to move, once each, beside a copy of as many bytes in the same run (caches and a "
        "shared machine take it past 100 %). Other sizes are in the file. "
    )
    return "\n".join(lines) + "\n\n" + note + _source("cpu/kernels", data)


def lemica() -> str:
    """LeMiCa at every budget, beside what else costs as much."""
    data = _read("cpu/lemica")
    lines = ["| full steps | " + " | ".join(_LEMICA) + " |", "| --- |" + " --- |" * len(_LEMICA)]
    found: dict[int, dict[str, str]] = {}
    for e in data["summary"]:
        if e["group"] == "LeMiCa":
            budget = round(e["forwards"]["large"] / 2)
        kind = {"Schedule": "evenly spaced", "TeaCache": "TeaCache", "fewer steps": "fewer steps"}.get(e["group"])
        kind = kind or ("sum of errors" if "sum" in e["contender"] else "LeMiCa")
        found.setdefault(budget, {})[kind] = f"{e['psnr']:.1f} ({e['psnr_worst']:.1f}), {e['speedup']:.2f}x"
        if round(e["forwards"]["large"] / 2) != budget:
            found[budget][kind] += f", {e['forwards']['large'] / 2:.0f} steps"
    for budget in sorted(found, reverse=True):
        lines.append(f"| {budget} | " + " | ".join(found[budget].get(name, "") for name in _LEMICA) + " |")
    note = (
        f"PSNR in dB (worst prompt) and speedup, {len(data['prompts'])} held-out captions, {_STEPS} steps; TeaCache at "
        "the threshold that computes as many steps, or next to it. "
    )
    return "\n".join(lines) + "\n\n" + note + _source("cpu/lemica", data)


_STEPS = 50
_LEMICA = ("LeMiCa", "sum of errors", "evenly spaced", "TeaCache", "fewer steps")


def lemica_samples() -> str:
    """What more calibration samples bring."""
    data = _read("cpu/lemica_samples")
    counts = sorted({row["samples"] for row in data["rows"]})
    names = ["one sample, each by itself" if c == 1 else f"{c} samples" for c in counts]
    lines = ["| full steps | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for budget in dict.fromkeys(row["budget"] for row in data["rows"]):
        by_count = {row["samples"]: row["psnr"] for row in data["rows"] if row["budget"] == budget}
        lines.append(f"| {budget} | " + " | ".join(", ".join(f"{p:.1f}" for p in by_count[c]) for c in counts) + " |")
    note = f"PSNR in dB, mean of {len(data['prompts'])} held-out captions. "
    return "\n".join(lines) + "\n\n" + note + _source("cpu/lemica_samples", data)


def schedules() -> str:
    """How long solving takes."""
    data = _read("cpu/schedules")
    lines = ["| steps, longest gap | budgets | C++, ms | Python, ms |", "| --- | --- | --- | --- |"]
    found: dict[tuple, dict[str, float]] = {}
    for row in data["rows"]:
        key = row["steps"], row["gap"], row["budgets"]
        found.setdefault(key, {})[row["impl"]] = 1000 * row["median_s"]
    for (steps, gap, budgets), times in found.items():
        python = f"{times['python']:.0f}" if "python" in times else ""
        lines.append(f"| {steps}, {gap} | {budgets}, all at once | {times['cpp']:.1f} | {python} |")
    return "\n".join(lines) + "\n\n" + _source("cpu/schedules", data)


def lemica_cost() -> str:
    """What a calibration costs, and what the inexact ones do."""
    data = _read("cpu/lemica_cost")
    exact, *rest = data["variants"].items()
    lines = ["| | forwards | minutes | rank correlation | schedule shared at 25 / 17 / 10 | PSNR dB at 25 / 17 / 10 |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    minutes, e = exact[1]["minutes"], exact[1]
    psnr = " / ".join(f"{v:.1f}" for v in e["psnr"].values())
    lines.append(f"| every edge from scratch | {e['forwards_from_scratch']} | {minutes['from scratch']:.1f} | 1 | | |")
    lines.append(f"| exact replays | {e['forwards']} | {minutes['recorded start']:.1f} | 1 | 1 / 1 / 1 | {psnr} |")
    lines.append(f"| the same, in batches | {e['forwards']} | {minutes['recorded start, one batch']:.1f} | 1 | "
                 f"1 / 1 / 1 | {psnr} |")  # fmt: skip
    for name, v in rest:
        small = f" + {v['small_forwards']} small" if v["small_forwards"] else ""
        cells = [name, f"{v['forwards']}{small}", f"{v['minutes']:.1f}", f"{v['rank_correlation']:.3f}"]
        cells += [
            " / ".join(f"{x:.2f}" for x in v["shared"].values()),
            " / ".join(f"{x:.1f}" for x in v["psnr"].values()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    note = f"One sample, {e['edges']} edges; {len(data['prompts'])} held-out captions for the PSNR. "
    return "\n".join(lines) + "\n\n" + note + _source("cpu/lemica_cost", data)


def lemica_closed() -> str:
    """Schedules from a Forecast calibration, beside those of exact replays."""
    data = _read("cpu/lemica_closed")
    names = list(data["rows"][0]["psnr"])
    lines = [f"| full steps | {' | '.join(names)} | steps shared |", "| --- | --- | --- | --- |"]
    for row in data["rows"]:
        cells = [f"{mean:.1f} ({worst:.1f})" for mean, worst in row["psnr"].values()]
        lines.append(f"| {row['budget']} | {' | '.join(cells)} | {row['shared']:.2f} |")
    note = (
        f"PSNR in dB (worst) of {len(data['prompts'])} held-out captions. Replays: {data['samples']} samples, "
        f"{data['forwards']} forwards. Closed form: {data['seconds']:.2f} s, no forwards; rank correlation of "
        f"{data['edges']} edges {data['rank_correlation']:.3f}. "
    )
    return "\n".join(lines) + "\n\n" + note + _source("cpu/lemica_closed", data)


def mixcache() -> str:
    """MixCache and the rows of its paper's Table 2."""
    data = _read("cpu/mixcache")
    lines = [
        "| | speedup | PSNR dB | worst | SSIM | steps F / o / g / b, first prompt |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for e in data["summary"]:
        levels = " / ".join(str(e["levels"][0].get(letter, 0)) for letter in "Fogb")
        numbers = f"{e['psnr']:.1f} | {e['psnr_worst']:.1f} | {e['ssim']:.3f}"
        lines.append(f"| {e['name']} | {e['speedup']:.2f} | {numbers} | {levels} |")
    note = f"{len(data['prompts'])} held-out captions. "
    return "\n".join(lines) + "\n\n" + note + _source("cpu/mixcache", data)


def distill() -> str:
    """The dual expert's variants and the teacher in few steps."""
    data = _read("cpu/distill")
    lines = [
        "| | steps | caption right | speedup | change | unevenness | sharpness | PSNR dB to the teacher |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    named = {**data["variants"], "shipped": "the same, as shipped in fp16"}
    for name, e in data["summary"].items():
        which, steps = name.rsplit(" ", 1)
        ratios = " | ".join(f"{e[k][1]:.2f}" for k in ("change", "unevenness", "sharpness"))
        psnr = "" if steps == "50" else f"{e['psnr']:.1f}"
        share = f"{100 * e['caption']:.0f} %"
        lines.append(f"| {named.get(which, which)} | {steps} | {share} | {e['speedup'][1]:.1f} | {ratios} | {psnr} |")
    note = f"{len(data['prompts'])} held-out captions. "
    return "\n".join(lines) + "\n\n" + note + _source("cpu/distill", data)


def distill_cost() -> str:
    """Memory and time of the experts, memory of their training."""
    data = _read("cpu/distill_cost")

    def mib(n: float) -> str:
        return f"{n / 2**20:.1f}"

    lora, merged = data["experts"]["lora"], data["experts"]["merged"]
    ms = [f"{1000 * e['step_seconds'][k][1]:.1f}" for e in (lora, merged) for k in (1, 3)]
    lines = [
        "| | MiB in fp32 | ms a step: semantic, detail |",
        "| --- | --- | --- |",
        f"| base alone | {mib(data['base_bytes'])} | |",
        f"| base, LoRA and fresh layers | {mib(data['base_bytes'] + lora['detail'])} | {ms[0]}, {ms[1]} |",
        f"| the same, merged | {mib(data['base_bytes'] + merged['detail'])} | {ms[2]}, {ms[3]} |",
        f"| two full models | {mib(data['two_full_bytes'])} | |",
    ]
    peaks = {k: mib(v["peak"] - v["before"]) for k, v in data["training"].items()}
    switch = data["switch"]
    first, others = ([1000 * v for v in switch[k]] for k in ("first_detail_step", "other_detail_steps"))
    added = 1e6 * (switch["choice"]["changing"][1] - switch["choice"]["staying"][1])
    note = (
        f"Changing over: {added:+.2f} us a call with no forward in it; of eight steps the detail expert's first takes "
        f"{first[1]:.1f} ms ({first[0]:.1f} to {first[2]:.1f}), its others {others[1]:.1f} ({others[0]:.1f} to "
        f"{others[2]:.1f}). Training the semantic expert on 16 clips at once takes {peaks['no checkpointing']} MiB "
        f"beyond the loaded pipeline, with gradient checkpointing {peaks['checkpointing']}. "
    )
    return "\n".join(lines) + "\n\n" + note + _source("cpu/distill_cost", data)


def fill(text: str) -> str:
    """The README with every generated part made anew."""

    def make(match: re.Match) -> str:
        made = globals().get(match[1]) or next(getattr(m, match[1]) for m in TABLES if hasattr(m, match[1]))
        return f"<!-- figures: {match[1]} -->\n{made()}\n<!-- end -->"

    return re.sub(r"<!-- figures: (\w+) -->\n.*?<!-- end -->", make, text, flags=re.DOTALL)


def main() -> int:
    """Returns how many pages are, or were, not what the JSON says; 0 once they are filled."""
    stale = 0
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text()
        if (filled := fill(text)) != text:
            stale += 1
            print(f"{path.relative_to(ROOT)} {'is not' if '--check' in sys.argv else 'was not'} what the JSON says")
            if "--check" not in sys.argv:
                path.write_text(filled)
    return stale if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
