"""The rivals of ``measure_forecast.py``: how each is written, and what of it may be varied to reach a budget.

A budget is a cost in full steps of 50.  A rival is a function from a budget to its options: texts that
``vaccel.evaluate`` reads (``cache_dit.DBCache(...)`` is read here), each with a hole ``{}`` where one number is fitted
to the budget, or without one where the cost is known beforehand.  The best option stands for the rival.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vaccel.demo.family import calibration_captions
from vaccel.evaluate import Contender, parse_contender
from vaccel.evaluate.contenders import calibrated

STEPS = 50
BLOCKS = 8  # of the demo family's large model


@dataclasses.dataclass(frozen=True)
class Knob:
    """A contender's text with a hole, and the range of the number in it.

    Cost falls as the number grows, which is looked for on a logarithmic scale; with ``whole`` it is a number of steps
    and cost rises with it.
    """

    text: str
    low: float
    high: float
    whole: bool = False

    def at(self, value: float) -> str:
        return self.text.replace("{}", f"{value:.4g}")

    def value(self, text: str) -> float | None:
        """The number in a text of this knob, None for another's text."""
        before, after = self.text.split("{}")
        if not (text.startswith(before) and text.endswith(after)):
            return None
        try:
            return float(text[len(before) : len(text) - len(after)])
        except ValueError:
            return None

    def between(self, costs: dict[float, float], budget: float) -> float | None:
        """Where to try next, given the costs of what was tried; None where nothing is left between."""
        ends = sorted(self._position(v) for v in (self.low, self.high))
        at = {self._position(v): cost for v, cost in costs.items()}
        left = max((p for p, cost in at.items() if cost > budget), default=ends[0])
        right = min((p for p, cost in at.items() if cost <= budget and p > left), default=ends[1])
        dearest, cheapest = ends
        if at.get(cheapest, budget) > budget or at.get(dearest, math.inf) <= budget:
            return None  # nothing in the range is cheap enough, or everything is
        share = 0.6  # of an interval with an end that was not tried
        if left in at and right in at:
            share = min(max((at[left] - budget) / (at[left] - at[right]), 0.15), 0.85)
        position = left + share * (right - left)
        value = float(round(-position)) if self.whole else float(f"{math.exp(position):.4g}")
        return None if value in costs else value

    def _position(self, value: float) -> float:
        return -value if self.whole else math.log(value)


Option = str | Knob


@dataclasses.dataclass(frozen=True)
class DBCache:
    """cache-dit's DBCache F1B0, with ``taylorseer_order`` > 0 its TaylorSeer; used like a ``Contender``."""

    label: str
    taylorseer_order: int
    options: dict[str, Any]
    num_steps: int | None = None

    @contextlib.contextmanager
    def applied(self, pipe: Any, small: nn.Module | None) -> Iterator[None]:
        os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # it reads this when imported
        import cache_dit

        shared = {"enable_separate_cfg": True, "num_inference_steps": STEPS}  # Wan calls once a branch
        config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, **shared, **self.options)
        order = self.taylorseer_order
        taylor = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
        cache_dit.enable_cache(pipe.transformer, cache_config=config, calibrator_config=taylor)
        try:
            yield None
        finally:
            cache_dit.disable_cache(pipe.transformer)


class Reader:
    """Reads contenders; MagCache's ratios are measured once, on a caption of the calibration side."""

    def __init__(self, pipe: Any, folder: Path, call: dict[str, Any]):
        self.pipe, self.folder, self.call = pipe, folder, call
        self.ratios: dict[str, Any] = {}

    def __call__(self, text: str) -> Contender | DBCache:
        if text.startswith("cache_dit.DBCache("):
            options = {k.arg: ast.literal_eval(k.value) for k in ast.parse(text, mode="eval").body.keywords}
            return DBCache(text, options.pop("taylorseer_order", 0), options)
        read = parse_contender(text, self.folder)
        if read.group == "diffusers.TaylorSeer":  # its default, bfloat16, would cost it fidelity
            return dataclasses.replace(read, options=(*read.options, ("taylor_factors_dtype", torch.float32)))
        if read.group == "diffusers.MagCache":
            return dataclasses.replace(read, options=(*read.options, *self._magnitudes(read).items()))
        return read

    def _magnitudes(self, read: Contender) -> dict[str, Any]:
        if not self.ratios:
            call = {**self.call, "generator": torch.Generator().manual_seed(0)}
            (fitted,) = calibrated([read], self.pipe, calibration_captions(1)[0], call)
            self.ratios = {k: dict(fitted.options)[k] for k in ("mag_ratios", "num_inference_steps")}
        return self.ratios


# -- the options of each ---------------------------------------------------------------------------------------------


def _gap(computed: float, warmup: int) -> int:
    """Steps skipped in a row at least, where ``warmup`` steps and then evenly spaced ones are computed."""
    return math.ceil((STEPS - warmup) / max(1.0, computed - warmup)) - 1


def steps(budget: int) -> list[Option]:
    return [f"steps({budget})"]


def sea_cache(budget: int) -> list[Option]:
    """The residual extrapolated (order 1); how long it retains and how many it may skip in a row matter to it."""
    start = "diffusers.SeaCache(threshold={}, residual_order=1, retention_steps="
    pairs = [(r, k) for r in ((3, 5) if budget > 9 else (2, 3)) for k in (_gap(budget, r), 2 * _gap(budget, r) + 2)]
    if budget > 22:
        pairs.append((5, 6))  # what is best at 22; rarer and longer stretches are worse here
    return [Knob(f"{start}{r}, max_consecutive_cached={k})", 0.08, 3.0) for r, k in pairs]


def taylor_seer(budget: int) -> list[Option]:
    """Every interval with a warm-up that makes exactly the budget, in lite mode."""
    found = {}
    for interval in range(2, STEPS):
        for warmup in range(2, budget // 2 + 3):
            if warmup + math.ceil((STEPS - 1 - warmup) / interval) == budget:
                found.setdefault(interval, warmup)
    start = "diffusers.TaylorSeer(cache_interval="
    every = [(n, order, warmup) for n, warmup in list(found.items())[:4] for order in (1, 2)]
    return [f"{start}{n}, max_order={order}, disable_cache_before_step={warmup})" for n, order, warmup in every]


def mag_cache(budget: int) -> list[Option]:
    shares = [share for share in (0.06, 0.1, 0.2) if share * STEPS < budget - 2][-2:]
    pairs = [(share, k * _gap(budget, round(share * STEPS))) for share in shares for k in (1, 2)]
    return [
        Knob(f"diffusers.MagCache(threshold={{}}, retention_ratio={share}, max_skip_steps={k})", 0.01, 3.0)
        for share, k in pairs
    ]


def lemica(budget: int) -> list[Option]:
    return [f"LeMiCa(artifact='lemica.json', budget={budget})"]


def teacache(budget: int) -> list[Option]:
    return [Knob(f"TeaCache(artifact='teacache.json', threshold={{}}, warmup={w})", 0.015, 0.4) for w in (1, 3, 5)]


def db_cache(budget: int) -> list[Option]:
    return _db_cache(budget, 0)


def db_cache_taylor(budget: int) -> list[Option]:
    return _db_cache(budget, 1)


def _db_cache(budget: int, order: int) -> list[Option]:
    computed = (budget - STEPS / BLOCKS) / (1 - 1 / BLOCKS)  # every skipped step runs one block
    found = [(w, _gap(computed, w) + 1) for w in (2, 4, 8) if w < computed][-2:]
    found += [(found[0][0], -1)]
    start = "cache_dit.DBCache(residual_diff_threshold={}, max_warmup_steps="
    end = f", taylorseer_order={order})"
    return [Knob(f"{start}{w}, max_continuous_cached_steps={k}{end}", 0.03, 1.5) for w, k in found]


def mixcache(budget: int) -> list[Option]:
    """``theta`` is how long it warms up; lower budgets need longer cycles; the step level alone costs 26."""
    kinds = {
        27: ("intervals='acc'", "intervals='eff'", "interval=3, levels=['step']"),
        22: ("intervals='eff'", "interval=8"),
        17: ("interval=8", "interval=8, penalty=False"),
        13: ("interval=12, penalty=False", "interval=8, penalty=False"),
        9: ("interval=12, penalty=False", "interval=20, penalty=False"),
    }
    return [Knob(f"MixCache(artifact='mixcache.json', theta={{}}, {k})", 0.02, 0.8) for k in kinds[budget]]


def direction_magnitude(budget: int) -> list[Option]:
    """The paper's interval makes two of the budgets; an earlier start and no end reach the others and are better."""
    firsts = {27: (0.22, 0.3), 22: (0.1, 0.2), 17: (0.06, 0.1, 0.16), 13: (0.06, 0.1), 9: (0.06, 0.08)}
    return [Knob(f"DirectionMagnitude(threshold={{}}, first={f}, last=1.0)", 3e-4, 30.0) for f in firsts[budget]]


def srdiffusion(budget: int) -> list[Option]:
    """``fix_steps`` sets the switch where no threshold does; below 13 only TeaCache on the small model helps."""
    if budget < 13:
        rendering = "rendering=TeaCache(artifact='teacache_small.json', threshold={})"
        return [Knob(f"SRDiffusion(threshold=0.5, fix_steps=4, {rendering})", 0.02, 0.5)]
    late = Knob("SRDiffusion(threshold=0.5, fix_steps={})", 0, 40, whole=True)
    return [Knob("SRDiffusion(threshold={})", 3e-4, 0.1), late] if budget > 13 else [late]


#: In order of importance.
RIVALS: dict[str, Callable[[int], list[Option]]] = {
    "steps": steps,
    "diffusers SeaCache": sea_cache,
    "diffusers TaylorSeer": taylor_seer,
    "diffusers MagCache": mag_cache,
    "LeMiCa": lemica,
    "TeaCache": teacache,
    "cache-dit DBCache + TaylorSeer": db_cache_taylor,
    "cache-dit DBCache": db_cache,
    "MixCache": mixcache,
    "DirectionMagnitude": direction_magnitude,
    "SRDiffusion": srdiffusion,
}
