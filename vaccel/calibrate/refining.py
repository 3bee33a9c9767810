"""A calibration's paths made better by what runs along them really reach: a local search, for those who have the time.

A plan is by an estimate of the error.  Here one step of a path is moved at a time, and the clips tell: half of the
prompts propose, the other half confirm, so that nothing is kept which is good for single prompts only.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..api import accelerate
from ..methods import Forecast
from ..planning import artifacts
from ..planning.calibration import calibration
from .samples import Progress, prompts_encoded_once, runs_of, sample, silent, steps_of

#: Shares of all steps whose paths are refined.
BUDGETS = (0.18, 0.26, 0.34, 0.44)
#: A path is given up before all prompts were tried where its mean is this far, in dB, behind.
HOPELESS = 1.0

Job = tuple[str, int]
Steps = tuple[int, ...]


def refine(
    pipe: Any, path: str | Path, prompts: Sequence[str], minutes: float, *, call: dict[str, Any],
    seeds: Sequence[int] | None = None, budgets: Sequence[int] | None = None, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Searches for better paths for so many ``minutes``; returns the artifact's data, which has them under "paths".

    ``Forecast.load`` takes them for runs at the calibration's own noise levels.  Stopped, the same call goes on from
    the best paths so far.

    Args:
        path: a Forecast artifact of this pipeline and this call.
        prompts: with the seeds, two runs at least.
        budgets: numbers of computed steps; by default 18 to 44 % of the steps.

    Raises ``ValueError`` for fewer than two runs, a number of steps that is not the calibration's, or a budget out of
    range.
    """
    path, known = Path(path), calibration(path)
    jobs = runs_of(prompts, seeds)
    steps = steps_of(call)
    if len(jobs) < 2 or not minutes > 0:
        raise ValueError(f"refining takes minutes and two prompts or seeds, got {minutes} and {len(jobs)}")
    if steps != known.gram.num_steps:
        raise ValueError(f"{path} is a calibration of {known.gram.num_steps} steps, the call has {steps}")
    chosen = sorted({max(3, round(share * steps)) for share in BUDGETS} if budgets is None else set(budgets))
    if outside := [budget for budget in chosen if not 3 <= budget < steps]:
        raise ValueError(f"budgets must be 3 to {steps - 1}, got {outside}")
    search = _Search(pipe, path, jobs, call)
    began = time.monotonic()
    total = max(1, round(60 * minutes))
    try:
        with prompts_encoded_once(pipe):
            for budget in itertools.cycle(chosen):
                spent = time.monotonic() - began
                if spent > 60 * minutes:
                    break
                progress(min(round(spent), total), total, search.told(budget))
                search.attempt(budget)
    finally:  # an interruption too
        search.save()
    progress(total, total, "done")
    return artifacts.read(path, Forecast.id)


class _Search:
    """What was found of every budget, and the full runs it is compared with.

    A better path is saved at once, how many were tried at the end: an artifact is large, and read anew once it changed.
    """

    def __init__(self, pipe: Any, path: Path, jobs: list[Job], call: dict[str, Any]):
        self.pipe, self.path, self.jobs, self.call = pipe, path, jobs, call
        self.paths: dict[str, dict[str, Any]] = {}
        self.full: dict[Job, torch.Tensor] = {}
        self.best: dict[int, dict[Job, float]] = {}  # PSNR of the best path so far

    def told(self, budget: int) -> str:
        found = self._state(budget)
        return f"{budget} steps: {found['tried']} paths tried, {found['gain']:+.1f} dB"

    def attempt(self, budget: int) -> None:
        """Tries one more path."""
        state = self._state(budget)
        path, reached = tuple(state["steps"]), self.best.setdefault(budget, {})
        candidate = neighbour(path, int(self.call["num_inference_steps"]), random.Random(f"{budget} {state['tried']}"))
        found = self._better(budget, candidate, path, reached)
        state["tried"] += 1
        if found is not None:
            gain = statistics.fmean(found[job] - reached[job] for job in self.jobs)
            state |= {"steps": list(candidate), "gain": state["gain"] + gain}
            self.best[budget] = found
            self.save()

    def save(self) -> None:
        """Joins what was found to the artifact, which may have gained samples or paths meanwhile."""
        if self.paths:
            artifacts.write(self.path, {**artifacts.read(self.path, Forecast.id), "paths": self.paths})

    def _state(self, budget: int) -> dict[str, Any]:
        name, known = str(budget), calibration(self.path)
        if name not in self.paths:
            begun = {"steps": list(known.plan(budget).full_steps), "tried": 0, "gain": 0.0}
            self.paths[name] = {**begun, **known.data.get("paths", {}).get(name, {})}
        return self.paths[name]

    def _better(self, budget: int, candidate: Steps, path: Steps, reached: dict[Job, float]) -> dict[Job, float] | None:
        """PSNR of every run along a path that is better in the mean of either half, and not worse in its worst."""
        found: dict[Job, float] = {}
        for half in (self.jobs[::2], self.jobs[1::2]):
            for count, job in enumerate(half, 1):
                if job not in reached:
                    reached[job] = self._psnr(budget, path, job)
                found[job] = self._psnr(budget, candidate, job)
                behind = statistics.fmean(reached[j] - found[j] for j in half[:count])
                if behind > HOPELESS:
                    return None
            if statistics.fmean(found[j] - reached[j] for j in half) <= 0:
                return None
            if min(found[j] for j in half) < min(reached[j] for j in half):
                return None
        return found

    def _psnr(self, budget: int, path: Steps, job: Job) -> float:
        if job not in self.full:
            self.full[job] = sample(self.pipe, *job, self.call, output="pt").double()
        method = dataclasses.replace(Forecast.load(self.path, budget), full_steps=path)
        with accelerate(self.pipe, method):
            made = sample(self.pipe, *job, self.call, output="pt").double()
        return -10 * math.log10(max(float((made - self.full[job]).square().mean()), 1e-12))


def neighbour(path: Steps, steps: int, chance: random.Random) -> Steps:
    """The path with one step moved: by one or two, or, one time in four, to anywhere; the first stays."""
    computed, free = set(path), [i for i in range(1, steps) if i not in path]
    while True:
        moved = chance.choice(path[1:])
        if chance.random() < 0.25:
            place = chance.choice(free)
        else:
            place = moved + chance.choice((-2, -1, 1, 2))
        if 0 < place < steps and place not in computed:
            return tuple(sorted(computed - {moved} | {place}))
