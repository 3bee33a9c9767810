"""Plain sampling loops of the methods, written from their description alone: slow, short, nothing shared with vaccel.

A loop takes a ``Task`` and returns a ``Run``: the final latents, one letter per step, and how far every decision was
from falling the other way.  Letters: ``F`` the large model computed, ``m`` a substituted output, ``s`` the small model
computed, ``r`` the residual of a block stack reused.

Everything measured (norms, cosines, L1 sums) is per sample and in double precision.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXDPMScheduler
from oracle_models import Branches, Text, evaluate, evaluate_stack, timestep_embedding
from torch import Tensor, nn

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class Task:
    """One run to do.

    Attributes:
        latents: as the pipeline prepares them.
        uncond: prompt embeddings of the negative prompt; ``None`` without guidance.
        generator: in the state in which the pipeline reaches its loop (some solvers draw noise from it).
        batched: guidance by one forward with rows [uncond; cond] instead of two forwards (CogVideoX's loop).
        dynamic: CogVideoX's guidance that changes with the timestep.
        rotary: the pipeline's rotary embedding (CogVideoX).
        rescaled: the guided output gets each token's norm back from the conditional one (Qwen-Image).
        image: frames, rows and columns of the tokens (Qwen-Image).
    """

    large: nn.Module
    scheduler: Any
    latents: Tensor
    cond: Text
    uncond: Text | None
    guidance: float
    steps: int
    small: nn.Module | None = None
    generator: Generators = None
    batched: bool = False
    dynamic: bool = False
    rotary: tuple[Tensor, Tensor] | None = None
    rescaled: bool = False
    image: tuple[int, int, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The branches of a full evaluation, in the order of the rows of the batched form."""
        return ("cond",) if self.uncond is None else ("uncond", "cond")

    def text(self, name: str) -> Text:
        return self.cond if name == "cond" else self.uncond

    def guide(self, out: Branches, t: Tensor) -> Tensor:
        if self.uncond is None:
            return out["cond"]
        scale = self.guidance
        if self.dynamic:
            scale = 1 + scale * (1 - math.cos(math.pi * ((self.steps - t.item()) / self.steps) ** 5.0)) / 2
        guided = out["uncond"] + scale * (out["cond"] - out["uncond"])
        if self.rescaled:
            guided = guided * out["cond"].norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return guided


@dataclass
class Run:
    """What a loop returns.

    Attributes:
        margins: for each decision, how far the criterion was from its threshold, as a share of it.
    """

    latents: Tensor
    letters: list[str]
    margins: list[float] = field(default_factory=list)

    @property
    def timeline(self) -> str:
        return "".join(self.letters)


class QwenEuler:
    """Qwen-Image's scheduler, written out: Euler steps along sigmas that depend on the number of tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.config = tokens, {}

    def set_timesteps(self, steps: int) -> None:
        """Shifted by e^mu, mu on a line in the number of tokens; stretched to end at 0.02; and 0."""
        mu = 0.5 + (0.9 - 0.5) * (self.tokens - 256) / (8192 - 256)
        s = np.linspace(1, 1 / steps, steps)
        s = math.exp(mu) / (math.exp(mu) + 1 / s - 1)
        s = 1 - (1 - s) * (1 - 0.02) / (1 - s[-1])
        self.sigmas = torch.tensor([*s, 0.0], dtype=torch.float32)
        self.timesteps = 1000 * self.sigmas[:-1]

    def set_begin_index(self, index: int) -> None:
        self.index = index

    def step(self, v: Tensor, t: Tensor, x: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        i, self.index = self.index, self.index + 1
        assert t == self.timesteps[i]
        return (x + (self.sigmas[i + 1] - self.sigmas[i]) * v,)


class Solver:
    """The scheduler, driven the way the diffusers pipelines drive it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.scheduler = task.scheduler
        self.scheduler.set_timesteps(task.steps)
        self.timesteps = self.scheduler.timesteps
        if not task.batched:
            self.scheduler.set_begin_index(0)
        self.history: Tensor | None = None  # CogVideoX keeps the solver's history in the pipeline
        accepted = inspect.signature(self.scheduler.step).parameters
        self.extra = {"eta": 0.0, "generator": task.generator} if task.batched else {}
        self.extra = {k: v for k, v in self.extra.items() if k in accepted}

    def step(self, i: int, v: Tensor, x: Tensor) -> Tensor:
        t = self.timesteps[i]
        if isinstance(self.scheduler, CogVideoXDPMScheduler):
            before = self.timesteps[i - 1] if i > 0 else None
            x, self.history = self.scheduler.step(v, self.history, t, before, x, **self.extra, return_dict=False)
            return x
        return self.scheduler.step(v, t, x, **self.extra, return_dict=False)[0]

    def denoised(self, i: int, v: Tensor, x: Tensor) -> Tensor:
        """The estimate of the clean latents that the solver itself makes of a prediction."""
        kind = self.scheduler.config.get("prediction_type", "flow_prediction")
        if kind == "flow_prediction":
            return x - self.scheduler.sigmas[i] * v
        assert kind == "v_prediction", kind
        alpha = self.scheduler.alphas_cumprod[self.timesteps[i]]
        return alpha**0.5 * x - (1 - alpha) ** 0.5 * v


# --- measures -------------------------------------------------------------------------------------------------------


def dot(a: Tensor, b: Tensor) -> Tensor:
    """One number per sample."""
    return (a.double() * b.double()).flatten(1).sum(1)


def norm(a: Tensor) -> Tensor:
    return dot(a, a).sqrt()


def rel_l1(new: Tensor, old: Tensor) -> Tensor:
    """Mean change relative to the mean of the old tensor, one number per sample."""
    return (new.double() - old.double()).abs().flatten(1).sum(1) / old.double().abs().flatten(1).sum(1)


def scaled(a: Tensor, factor: Tensor) -> Tensor:
    """Each sample times its own factor."""
    return (a.double() * factor.view(-1, *[1] * (a.ndim - 1))).to(a.dtype)


def margin(value: float, threshold: float) -> float:
    """How far a comparison is from a tie, relative to the larger side; two exact zeros are no rounding matter."""
    scale = max(abs(value), abs(threshold))
    return abs(value - threshold) / scale if scale else math.inf


# --- loops ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def full(task: Task) -> Run:
    """The pipeline itself."""
    solver, x = Solver(task), task.latents
    for i, t in enumerate(solver.timesteps):
        x = solver.step(i, task.guide(evaluate(task.large, task, x, t, task.names), t), x)
    return Run(x, ["F"] * task.steps)


@torch.no_grad()
def direction_magnitude(
    task: Task,
    threshold: float,
    *,
    first: float = 0.2,
    last: float = 0.95,
    cfg_reuse: bool = True,
    magnitude: str = "small",
) -> Run:
    """Direction from the large model's residual, magnitude from the small model."""
    solver, x = Solver(task), task.latents
    run = Run(x, [])
    begin = math.ceil(round(first * task.steps, 9))
    end = math.floor(round(last * task.steps, 9))
    error = torch.zeros(x.shape[0], dtype=torch.float64)
    residuals: Branches = {}
    last_large: Branches = {}
    reference: Tensor | None = None

    for i, t in enumerate(solver.timesteps):
        adaptive = begin <= i < end
        if adaptive:
            run.margins.append(margin(error.max().item(), threshold))
        if i >= end:
            run.letters.append("s")
            out = evaluate(task.small, task, x, t, task.names)
        elif not adaptive or error.max() > threshold:
            run.letters.append("F")
            out = last_large = evaluate(task.large, task, x, t, task.names)
            residuals = {name: out[name] - x for name in task.names}
            error = torch.zeros_like(error)
            reference = None
        else:
            run.letters.append("m")
            small = evaluate(task.small, task, x, t, ("cond",) if cfg_reuse else task.names)
            if reference is None:  # its own term is 0 by definition, not by rounding
                reference = small["cond"]
            else:
                error = error + 1 - dot(small["cond"], reference) / (norm(small["cond"]) * norm(reference))
            out = {}
            for name in task.names:
                direction = x + residuals[name]
                if magnitude == "cached":
                    out[name] = direction
                elif magnitude == "projection":
                    out[name] = scaled(direction, dot(last_large[name], direction) / dot(direction, direction))
                else:
                    size = norm(small["cond" if cfg_reuse else name])
                    out[name] = scaled(direction, size / norm(direction))
        x = solver.step(i, task.guide(out, t), x)
    run.latents = x
    return run


class TeaCacheState:
    """Says at each step whether the blocks are computed.

    Args:
        rows: samples in the batch; the branches of a sample see the same timestep, so one state serves both.
    """

    def __init__(
        self, model: nn.Module, rows: int, threshold: float, coefficients: Sequence[float], *, retention: bool = False
    ) -> None:
        self.model, self.rows, self.threshold, self.retention = model, rows, threshold, retention
        self.coefficients = coefficients
        self.total = torch.zeros(rows, dtype=torch.float64)
        self.previous: Tensor | None = None
        self.seen = 0

    def compute(self, t: Tensor, *, last: bool, margins: list[float]) -> bool:
        m = timestep_embedding(self.model, t, self.rows, projected=self.retention)
        previous, self.previous = self.previous, m
        seen, self.seen = self.seen, self.seen + 1
        forced = seen < 5 if self.retention else seen == 0 or last
        if not forced:
            distance = rel_l1(m, previous)
            powers = range(len(self.coefficients) - 1, -1, -1)
            self.total = self.total + sum(c * distance**p for c, p in zip(self.coefficients, powers, strict=True))
            largest = self.total.max().item()
            if self.threshold > 0:
                margins.append(margin(largest, self.threshold))
                if largest < self.threshold:
                    return False
        self.total = torch.zeros_like(self.total)
        return True


@torch.no_grad()
def tea_cache(task: Task, threshold: float, coefficients: Sequence[float], *, retention: bool = False) -> Run:
    """Skip the blocks while the timestep embedding has moved little."""
    solver, x = Solver(task), task.latents
    run = Run(x, [])
    state = TeaCacheState(task.large, x.shape[0], threshold, coefficients, retention=retention)
    residuals: Branches | None = None
    for i, t in enumerate(solver.timesteps):
        compute = state.compute(t, last=i == task.steps - 1, margins=run.margins)
        run.letters.append("F" if compute else "r")
        out, residuals = evaluate_stack(task.large, task, x, t, None if compute else residuals)
        x = solver.step(i, task.guide(out, t), x)
    run.latents = x
    return run


@torch.no_grad()
def sr_diffusion(
    task: Task,
    threshold: float,
    *,
    fix_steps: int = 5,
    signal: str = "prediction",
    rendering: dict[str, Any] | None = None,
) -> Run:
    """The large model first, the small one for good once the change of the signal has settled.

    Args:
        rendering: TeaCache's parameters, for the small model's steps.
    """
    solver, x = Solver(task), task.latents
    run = Run(x, [])
    batch = x.shape[0]
    latched = torch.zeros(batch, dtype=torch.bool)
    signals: list[Tensor] = []
    changes: list[Tensor] = []
    tea: TeaCacheState | None = None
    residuals: Branches | None = None

    for i, t in enumerate(solver.timesteps):
        if latched.all():
            if rendering is None:
                run.letters.append("s")
                out = evaluate(task.small, task, x, t, task.names)
            else:
                tea = tea or TeaCacheState(task.small, batch, **rendering)
                compute = tea.compute(t, last=i == task.steps - 1, margins=run.margins)
                run.letters.append("s" if compute else "r")
                out, residuals = evaluate_stack(task.small, task, x, t, None if compute else residuals)
            x = solver.step(i, task.guide(out, t), x)
            continue

        run.letters.append("F")
        guided = task.guide(evaluate(task.large, task, x, t, task.names), t)
        denoised = solver.denoised(i, guided, x) if signal == "denoised" else None
        x = solver.step(i, guided, x)
        signals.append({"prediction": guided, "denoised": denoised, "latents": x}[signal])
        if len(signals) >= 2:
            changes.append(torch.tanh(rel_l1(signals[-1], signals[-2])))
        if len(changes) >= 2 and i + 1 > fix_steps:
            drop = changes[-2] - changes[-1]
            # Two bounds; how far from 0 a drop is must be seen against the threshold too.
            run.margins += [min(abs(d), abs(d - threshold)) / threshold for d in drop[~latched].tolist()]
            latched = latched | ((drop > 0) & (drop < threshold))
    run.latents = x
    return run
