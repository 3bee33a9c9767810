"""ComfyUI's model patch beside ComfyUI's own caches: ``python bench/measure_comfyui.py``.

On a double of ComfyUI (``tests/comfyui_double.py``) with the samplers of k-diffusion, both trained families: PSNR in dB
of the finished clip or picture to the full run by method and number of computed calls, on held-out captions.  EasyCache
and LazyCache of ComfyUI, and our EasyCache, have the threshold of each caption and budget with which they compute as
many calls, or next more: nobody would know it beforehand.  Writes bench/results/cpu/comfyui.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import results
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import comfyui_double as comfy
import comfyui_families
import comfyui_levels
from oracle_comfyui_caches import tuned

from vaccel.integrations.comfyui import Choice, journal_of, patched

#: (family, sampler, steps, computed calls)
SETTINGS = [
    ("glyphs", "euler", 20, (10, 7)), ("glyphs", "dpmpp_2m", 20, (10,)), ("glyphs", "euler_ancestral", 20, (10,)),
    ("shapes", "euler", 20, (10, 7)), ("shapes", "euler_ancestral_rf", 20, (10,)),
]  # fmt: skip
#: Held-out captions: a clip takes ten times as long as a picture.
CAPTIONS = {"glyphs": 3, "shapes": 2}
TRIES = 7
KEPT = Path("out/comfyui/rows.json")


def easycache(patcher: Any, budget: int, run: Callable[[Any], torch.Tensor]) -> tuple[int, torch.Tensor]:
    """Our EasyCache, by the threshold with which it computes so many calls or next more."""
    low, high, best = 0.0, 1.0, None
    for _ in range(TRIES):
        middle = (low + high) / 2
        fast = patched(patcher, Choice("EasyCache", "threshold", middle))
        made = run(fast)
        count = journal_of(fast).last.computed_calls
        if count >= budget and (best is None or count < best[0]):
            best = count, made
        if count == budget:
            break
        low, high = (middle, high) if count > budget else (low, middle)
    return best or (journal_of(fast).last.computed_calls, made)


def runs(
    family: Any, run: Callable[[Any, torch.Tensor], torch.Tensor], sigmas: torch.Tensor, budget: int
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """(method, computed calls, latents) of one caption."""

    def along(patcher: Any) -> torch.Tensor:
        return run(patcher, sigmas)

    for method in ("Forecast", "TeaCache", "Schedule"):
        fast = patched(family.patcher, Choice(method, "computed calls", budget))
        made = along(fast)
        yield method, journal_of(fast).last.computed_calls, made
    yield "EasyCache", *easycache(family.patcher, budget, along)
    for lazy, name in ((False, "ComfyUI's EasyCache"), (True, "ComfyUI's LazyCache")):
        cache, made = tuned(family.patcher, budget, along, lazy=lazy, tries=TRIES)
        yield name, cache.timeline.count("F"), made
    yield "fewer steps", budget, run(family.patcher, comfyui_levels.simple_sigmas(family.sampling, budget))


def measure(name: str, sampler: str, steps: int, budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    """The rows of a setting."""
    family, rows = comfyui_families.load(name), []
    sigmas = comfyui_levels.simple_sigmas(family.sampling, steps)
    found: dict[tuple[int, str], list[tuple[float, int]]] = {}
    for number, caption in enumerate(family.captions[: CAPTIONS[name]]):

        def run(patcher: Any, at: torch.Tensor, c: str = caption, seed: int = number) -> torch.Tensor:
            return family.sample(patcher, c, sampler, at, seed=seed)

        full = run(family.patcher, sigmas)
        for budget in budgets:
            for method, computed, made in runs(family, run, sigmas, budget):
                found.setdefault((budget, method), []).append((family.psnr(made, full), computed))
    for (budget, method), each in found.items():
        psnr, computed = zip(*each, strict=True)
        rows.append({
            "family": name, "sampler": sampler, "steps": steps, "budget": budget, "method": method,
            "computed": round(statistics.mean(computed), 1), "psnr": round(statistics.mean(psnr), 2),
            "worst": round(min(psnr), 2),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(KEPT.read_text()) if KEPT.exists() else []
    for setting in SETTINGS:
        if not any((r["family"], r["sampler"], r["steps"]) == setting[:3] for r in rows):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows += measure(*setting)
            KEPT.write_text(json.dumps(rows))
    read = comfy.__doc__.partition("at commit\n")[2].partition(" ")[0]
    results.write("comfyui", {"rows": rows, "captions": CAPTIONS, "comfyui_commit": read})


if __name__ == "__main__":
    main()
