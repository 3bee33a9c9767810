"""What each rival is tuned over at a budget (``RIVALS``), and what calibrated ones know (``Calibration``)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import budcache, dpcache, easycache, l2p, meancache, seacache, spectrum, taylorseer
from .loop import Loop, Recorded, Rival, features, gram, recorded

TIGHT = (9, 13, 17)  # budgets that BudCache's second stage is for


@dataclasses.dataclass(frozen=True)
class Option:
    """A rival's setting: ``make(value)`` is a fresh rival; ``value`` its threshold where one is to be fitted."""

    text: str
    make: Callable[[float], Rival]
    fitted: bool = False


class Calibration:
    """Full runs on captions of the training side, made when first asked for, and what follows from them."""

    def __init__(self, loop: Loop, prompts: Sequence[str], first_seed: int, folder: Path):
        self.loop, self.prompts, self.seed, self.folder = loop, prompts, first_seed, folder
        self._runs: list[Recorded] | None = None
        self._full: list[Tensor] | None = None
        self._products: dict[str, np.ndarray] = {}

    @property
    def runs(self) -> list[Recorded]:
        if self._runs is None:
            self._runs = recorded(self.loop, self.prompts, self.seed)
        return self._runs

    @property
    def full(self) -> list[Tensor]:
        """The finished latents."""
        if self._full is None:
            with torch.no_grad():
                self._full = [self.loop.run(p, self.seed + n)[0] for n, p in enumerate(self.prompts)]
        return self._full

    def products(self, what: str) -> np.ndarray:
        if what not in self._products:
            self._products[what] = gram(self.loop, self.runs, what)
        return self._products[what]

    def costs(self, what: str, order: int) -> np.ndarray:
        def make() -> np.ndarray:
            return dpcache.costs([features(self.loop, run, what) for run in self.runs], order)

        return self._kept(f"costs_{what}_{order}", make)

    def times(self, what: str) -> list[float]:
        """The time over which ``what`` is a velocity: the level; for a noise, that level's odds, sigma / alpha."""
        d = self.loop.denoiser
        noise = what == "output" and d.scales[0] != (1.0, 0.0)
        return [s / (1 - s) for s in d.levels] if noise else d.levels

    def deviations(self, what: str, displacement: bool) -> np.ndarray:
        def make() -> np.ndarray:
            d, runs = self.loop.denoiser, []
            for run in self.runs:
                rows = features(self.loop, run, what).unflatten(1, (2, -1))
                wanted, unwanted = rows[:, d.cond], rows[:, 1 - d.cond]
                runs.append(unwanted + d.guidance * (wanted - unwanted))
            return meancache.deviations(runs, self.times(what), displacement=displacement)

        return self._kept(f"deviations_{what}_{displacement}", make)

    def searched(self, budget: int) -> dict[str, Any]:
        """BudCache's mask, and its grid at a tight budget; kept as JSON."""
        path = self.folder / f"budcache_{budget}.json"
        if not path.exists():
            path.write_text(json.dumps(self._search(budget)))
        return json.loads(path.read_text())

    def _search(self, budget: int, samples: int = 2, anneal: int = 40, rounds: int = 2) -> dict[str, Any]:
        loop = self.loop

        def loss(path: tuple[int, ...]) -> float:
            total = 0.0
            for n in range(samples):
                latents, _ = loop.run(self.prompts[n], self.seed + n, budcache.budcache(path))
                total += (latents - self.full[n]).square().mean().item() / samples
            return total

        start = dpcache.path_of(self.costs("residual", 0), budget, max(2, int(0.3 * budget)))
        with torch.no_grad():
            path, found = budcache.search(loss, start, loop.steps, anneal=anneal, rounds=rounds)
        kept = {"start": start, "path": path, "loss": found, "anneal": anneal, "rounds": rounds, "samples": samples}
        if budget in TIGHT:
            made = budcache.refine(loop, path, self.prompts, self.seed, self.full, updates=24, rate=0.03)
            kept |= {"grid": made[0].tolist(), "losses": made[1]}
        return kept

    def _kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if not path.exists():
            np.save(path, make())
        return np.load(path)


# -- the settings of each --------------------------------------------------------------------------------------------


def _taylorseer(c: Calibration, budget: int) -> list[Option]:
    cases = [
        {"order": order, "warm": warm, "what": what, "last": last}
        for order, what in ((1, "output"), (1, "hidden"), (2, "output"))
        for warm, last in ((2, True), (3, True), (3, False), (5, True))
        if warm < budget - 1
    ]
    return [_plain(case, lambda case=case: taylorseer.taylorseer(c.loop.steps, budget, **case)) for case in cases]


def _spectrum(c: Calibration, budget: int) -> list[Option]:
    shared = {"window": 2.0, "degree": 4}
    cases = [
        dict(warm=warm, w=w, penalty=penalty, what=what, **shared)
        for warm in (3, 5)
        for w, penalty in ((1.0, 0.1), (1.0, 1e-3), (0.5, 0.1), (0.5, 1e-3))
        for what in ("output", "hidden")
    ]
    made = [case for case in cases if spectrum.grown(c.loop.steps, budget, case["warm"], case["window"])]
    return [_plain(case, lambda case=case: spectrum.spectrum(c.loop.steps, budget, **case)) for case in made]


def _dpcache(c: Calibration, budget: int) -> list[Option]:
    cases = [
        {"order": order, "warm": warm, "what": what}
        for what in ("output", "hidden")
        for order, warm in ((2, 3), (1, 3), (1, 2))
    ]
    return [
        _plain(case, lambda case=case: dpcache.dpcache(c.costs(case["what"], case["order"]), budget, **case))
        for case in cases
    ]


def _meancache(c: Calibration, budget: int) -> list[Option]:
    whats = ["output"] if c.loop.denoiser.scales[0] == (1.0, 0.0) else ["output", "velocity"]
    cases = [
        {"gamma": gamma, "what": what, "displacement": displacement}
        for what in whats
        for displacement in (False, True)
        for gamma in (1.0, 2.0, 4.0)
    ]

    def make(gamma: float, what: str, displacement: bool) -> Rival:
        known = c.deviations(what, displacement)
        return meancache.meancache(known, c.times(what), budget, gamma=gamma, what=what)

    return [_plain(case, lambda case=case: make(**case)) for case in cases]


def _l2p(c: Calibration, budget: int) -> list[Option]:
    cases = [
        {"history": history, "warm": warm, "power": power, "penalty": penalty, "what": what}
        for history, penalty in (("computed", 1e-5), ("all", 1e-3))
        for what in ("output", "hidden")
        for warm, power in ((2, 1.0), (3, 1.3), (4, 1.0), (2, 0.75))
    ]
    return [_plain(case, lambda case=case: l2p.l2p(c.products(case["what"]), budget, **case)) for case in cases]


def _budcache(c: Calibration, budget: int) -> list[Option]:
    found = c.searched(budget)
    options = [_plain({"stage": 1}, lambda: budcache.budcache(found["path"]))]
    if "grid" in found:
        grid = torch.tensor(found["grid"])
        options.append(_plain({"stage": 2}, lambda: budcache.budcache(found["path"], grid=grid)))
    return options


def _easycache(c: Calibration, budget: int) -> list[Option]:
    kinds = ((2, "computed"), (4, "computed"), (7, "computed"), (4, "previous"))
    cases = [{"warm": warm, "points": points} for warm, points in kinds if warm < budget - 1]

    def make(value: float, **case: Any) -> Rival:
        return easycache.EasyCache(value, steps=c.loop.steps, **case)

    return [Option(_text(case), lambda v, case=case: make(v, **case), True) for case in cases]


def _seacache(c: Calibration, budget: int) -> list[Option]:
    d = c.loop.denoiser
    flow = d.scales[0] == (1.0, 0.0)
    # u = a eps + b x with a = (alpha + sigma) / alpha, b = -1 / alpha: -b / a brings x to the flow.
    shrink = [1.0] * c.loop.steps if flow else [-b / a for a, b in d.scales]

    def make(value: float, **case: Any) -> Rival:
        return seacache.SeaCache(value, levels=d.levels, shrink=shrink, **case)

    cases = []
    for warm in (2, 3, 5):
        gap = -(-(c.loop.steps - warm) // max(1, budget - warm)) - 1
        cases += [{"warm": warm, "longest": k} for k in (gap, 2 * gap + 2) if warm < budget - 2]
    cases.append({"warm": 3, "longest": 2 * cases[0]["longest"] + 2, "power": 2.0})
    return [Option(_text(case), lambda v, case=case: make(v, **case), True) for case in cases]


def _plain(case: dict[str, Any], make: Callable[[], Rival]) -> Option:
    return Option(_text(case), lambda value: make())


def _text(case: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in case.items())


RIVALS: dict[str, Callable[[Calibration, int], list[Option]]] = {
    "Spectrum": _spectrum,
    "DPCache": _dpcache,
    "MeanCache": _meancache,
    "L2P": _l2p,
    "EasyCache": _easycache,
    "BudCache": _budcache,
    "SeaCache": _seacache,
    "TaylorSeer": _taylorseer,
}
