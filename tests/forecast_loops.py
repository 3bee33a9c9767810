"""Runs with forecasts as plain loops: the pipelines' own schedulers and models, ``oracle_forecast`` for the rest.

Velocities are fp64 arrays [S, C, ...], whatever axis a family has its channels on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import oracle
import oracle_forecast
import torch
from calibrated import STEPS
from numpy import ndarray
from oracle import Solver, Task
from oracle_caching import again
from oracle_models import evaluate
from test_oracle import ONE, oracle_task
from test_qwen_image import qwen_task
from torch import Tensor

#: (known steps, newest first; their velocities; the step) -> its velocity
Rule = Callable[[tuple[int, ...], list[ndarray], int], ndarray]


def task_of(solver: str, prompt: str | list[str] = ONE, guidance: float = 5.0, steps: int = STEPS) -> Task:
    """The run that ``tiny.latents(..., seed=SEED)`` starts, "qwen" for Qwen-Image, which has a scheduler of its own."""
    return qwen_task(prompt, guidance, steps) if solver == "qwen" else oracle_task(solver, prompt, guidance, steps)


class Coordinates:
    """Where a task's steps lie, and predictions as velocities and back."""

    def __init__(self, task: Task, solver: Solver) -> None:
        scheduler = solver.scheduler
        config = scheduler.config
        self.axis = 2 if task.batched else -1 if task.image else 1
        self.kind = "flow_prediction" if config.get("use_flow_sigmas") else config.get("prediction_type")
        self.kind = self.kind or "flow_prediction"
        if self.kind == "flow_prediction":
            self.places = [(1 - s, s) for s in scheduler.sigmas.double().tolist()]
        else:
            cumulative = [float(scheduler.alphas_cumprod[int(t)]) for t in solver.timesteps]
            self.places = [(a**0.5, (1 - a) ** 0.5) for a in cumulative] + [(1.0, 0.0)]
        self.levels = [oracle_forecast.flow_sigma(alpha, sigma) for alpha, sigma in self.places]

    def velocity(self, i: int, prediction: Tensor, x: Tensor) -> ndarray:
        if self.kind == "flow_prediction":
            u = prediction.double().numpy()
        else:
            u = oracle_forecast.flow_space(*self.places[i], x.double().numpy(), prediction.double().numpy(), self.kind)
            u = u[2]
        return np.moveaxis(u, self.axis, 1)

    def prediction(self, i: int, velocity: ndarray, x: Tensor) -> Tensor:
        u, (alpha, sigma) = np.moveaxis(velocity, 1, self.axis), self.places[i]
        x0 = x.double().numpy() / (alpha + sigma) - self.levels[i] * u  # (1 - s) x0 + s eps = x0 + s u
        eps = u + x0
        kinds = {"flow_prediction": u, "epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}
        return torch.from_numpy(np.ascontiguousarray(kinds[self.kind])).to(x.dtype)


@dataclass
class Made:
    """A run: final latents, letters, and the guided velocities of the steps that were computed."""

    latents: Tensor
    letters: str = ""
    velocities: dict[int, ndarray] = field(default_factory=dict)
    levels: list[float] = field(default_factory=list)

    @property
    def trajectory(self) -> ndarray:
        """[S, T, C, ...]; zeros for steps that were not computed."""
        some = self.velocities[0]
        return np.stack([self.velocities.get(i, np.zeros_like(some)) for i in range(len(self.letters))], axis=1)


@torch.no_grad()
def forecast(task: Task, full: Sequence[int] | Callable[[int, Made], bool], rule: Rule | None, order: int = 2) -> Made:
    """Computed at the steps of ``full``, or where it says so; elsewhere every branch as ``rule`` has it."""
    task = again(task)
    solver, x = Solver(task), task.latents
    at = Coordinates(task, solver)
    made, past = Made(x, levels=at.levels), {name: {} for name in task.names}
    for i, t in enumerate(solver.timesteps):
        computed = full(i, made) if callable(full) else i in full
        if computed:
            out = evaluate(task.large, task, x, t, task.names)
            for name in task.names:
                past[name][i] = at.velocity(i, out[name], x)
            made.velocities[i] = at.velocity(i, task.guide(out, t), x)
        else:
            known = oracle_forecast.known_after(list(made.velocities), order)
            out = {n: at.prediction(i, rule(known, [past[n][f] for f in known], i), x) for n in task.names}
        made.letters += "F" if computed else "p"
        x = solver.step(i, task.guide(out, t), x)
    made.latents = x
    return made


@torch.no_grad()
def last_output(task: Task, full: Sequence[int]) -> Tensor:
    """The latents of a run that takes the last computed outputs again."""
    task = again(task)
    solver, x, out = Solver(task), task.latents, {}
    for i, t in enumerate(solver.timesteps):
        out = evaluate(task.large, task, x, t, task.names) if i in full else out
        x = solver.step(i, task.guide(out, t), x)
    return x


def line(task: Task, damping: float = 0.5) -> Rule:
    """Without calibration."""
    levels = Coordinates(task, Solver(again(task))).levels
    return lambda known, v, step: oracle_forecast.uncalibrated(v[:2], levels, known[:2], step, damping)


def fitted(trajectories: ndarray, per: str = "channel") -> Rule:
    """With the weights that fit trajectories [S, T, C, ...] best."""

    def rule(known: tuple[int, ...], v: list[ndarray], step: int) -> ndarray:
        if "band" not in per:
            return oracle_forecast.combine(v, oracle_forecast.coefficients(trajectories, known, step, per))
        group = "channel" if "channel" in per else "tensor"
        weights = oracle_forecast.banded_coefficients(trajectories, known, step, 0.5, group)
        parts = zip(*(oracle_forecast.bands(velocity, 0.5) for velocity in v), strict=True)
        return sum(
            oracle_forecast.combine(part, weights[name]) for name, part in zip(("low", "high"), parts, strict=True)
        )

    return rule


def between(measured: dict[str, float], steps: int) -> list[float]:
    """Gains by step, on straight lines of their logarithms between those measured and level beyond them.

    Those measured are brought to fall along the run: each is the least, over where one may begin before it, of the
    largest mean from there to it or further on.
    """
    steps_, logs = zip(*sorted((int(j), math.log(g)) for j, g in measured.items()), strict=True)
    n = len(logs)
    falling = [
        min(max(sum(logs[a : b + 1]) / (b + 1 - a) for b in range(i, n)) for a in range(i + 1)) for i in range(n)
    ]
    known = list(zip(steps_, falling, strict=True))
    out = []
    for i in range(steps):
        before, after = [k for k in known if k[0] <= i] or known[:1], [k for k in known if k[0] >= i] or known[-1:]
        (a, ga), (b, gb) = before[-1], after[0]
        out.append(math.exp(ga if a == b else ga + (gb - ga) * (i - a) / (b - a)))
    return out


class Guard:
    """Decides which steps are computed: those of a path, and earlier ones once forecasts are worse than calibrated.

    Attributes:
        seen: by step, how many times as wrong as calibrated the forecasts up to it were.
        extra: how often it has taken a stretch back.
        samples: at every judgement, the ratios of all samples.
    """

    def __init__(
        self, trajectories: ndarray, levels: Sequence[float], error_growth: Sequence[float], path: Sequence[int],
        guard: float, max_error: float, order: int = 2,
    ) -> None:  # fmt: skip
        self.trajectories, self.levels, self.error_growth, self.path = trajectories, levels, [*error_growth, 1.0], path
        self.bound, self.guard, self.order = guard * max_error, guard, order
        self.elements = trajectories[0, 0].size
        self.following, self.seen, self.extra, self.samples = 0, {}, 0, []

    def __call__(self, step: int, made: Made) -> bool:
        computed = sorted(made.velocities)
        if len(computed) > 1 and computed[-1] == step - 1:
            self.judge(step, computed, made)
        if step < self.following:
            return False
        self.following = min((f for f in self.path if f > step), default=len(self.levels) - 1)
        return True

    def judge(self, step: int, computed: list[int], made: Made) -> None:
        before = oracle_forecast.known_after(computed[:-1], self.order)
        every = [
            oracle_forecast.forecast_error(self.trajectories, sample, before, computed[-1], "channel").ratio
            for sample in made_so_far(made, computed[-1])
        ]
        self.samples.append(every)
        last = [max(ratios) ** 2 for ratios in self.samples[-3:]]
        times = self.seen[step] = math.sqrt(sum(last) / len(last))
        if times <= self.guard:
            return
        known, planned = oracle_forecast.known_after(computed, self.order), self.following
        while self.following > step and times * self.error(known, self.following) > self.bound:
            self.following -= 1
        self.extra += self.following < planned

    def error(self, known: tuple[int, ...], end: int) -> float:
        # One more step, of width zero, so that a stretch may end behind the last.
        v = np.concatenate([self.trajectories, np.zeros_like(self.trajectories[:, :1])], axis=1)
        levels = [*self.levels, self.levels[-1]]
        return oracle_forecast.edge_error(v, levels, known, end, "channel", self.error_growth) / math.sqrt(
            self.elements
        )


def made_so_far(made: Made, step: int) -> ndarray:
    """[S, step + 1, C, ...]."""
    some = made.velocities[0]
    return np.stack([made.velocities.get(i, np.zeros_like(some)) for i in range(step + 1)], axis=1)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().norm() / b.double().norm())


__all__ = [
    "Coordinates", "Guard", "Made", "Rule", "between", "distance", "fitted", "forecast", "last_output", "line",
    "oracle", "task_of",
]  # fmt: skip
