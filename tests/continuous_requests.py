"""Requests of a server that batches continuously, and its loop: what ``test_continuous.py`` and its faults share."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch

import vaccel

SHAPE = (4, 3, 5)


def exact(scale: float):
    """A model whose rows are bit for bit the same in any batch: sums and products of single elements alone."""

    def model(x, t, condition):
        shape = (-1, *(1 for _ in SHAPE))
        drift, told = (t * (scale / 1000)).view(shape), condition["text"].view(len(x), SHAPE[0], 1, 1)
        return x * drift - x * x * 0.05 + told * scale

    return model


@dataclasses.dataclass
class Request:
    """What a user asks for, and what a loop of the server's makes of it."""

    seed: int
    method: vaccel.Method
    steps: int
    guidance: float = 3.0
    guided: bool = True
    rows: int = 1
    joins: int = 0

    def __post_init__(self):
        made = torch.Generator().manual_seed(self.seed)
        self.x = torch.randn(self.rows, *SHAPE, generator=made)
        self.cond, self.uncond = ({"text": torch.randn(self.rows, SHAPE[0], generator=made)} for _ in range(2))
        self.times = torch.linspace(1, 0, self.steps + 1)
        self.i, self.error = 0, None

    @property
    def entry(self) -> tuple[Any, ...]:
        return self.i, float(self.times[self.i] * 1000), self.x, self.cond, self.uncond if self.guided else None

    def take(self, v: torch.Tensor) -> None:
        self.x = self.x + (self.times[self.i + 1] - self.times[self.i]) * v
        self.i += 1

    def alone(self) -> tuple[torch.Tensor, str]:
        """By ``vaccel.Denoiser``, which knows of no batches."""
        own = dataclasses.replace(self)
        denoiser = vaccel.Denoiser(exact(1.0), exact(0.9), method=self.method, guidance=self.guidance)
        with denoiser.run(self.steps) as run:
            while own.i < self.steps:
                i, t, *rest = own.entry
                own.take(run.step(i, torch.tensor(t).expand(self.rows), *rest))
        return own.x, run.trace.timeline()


def methods(steps: int) -> list[vaccel.Method]:
    return [
        vaccel.Forecast((0, 1, *range(4, steps, 4)), steps),
        vaccel.Schedule(range(0, steps, 3), num_steps=steps, reuse="residual"),
        vaccel.Schedule.from_timeline(("FFggs" * steps)[:steps]),
        vaccel.Schedule.from_timeline(("FoFp" * steps)[:steps], reuse="forecast"),
        vaccel.EasyCache(3.0, 2),
        vaccel.DirectionMagnitude(threshold=0.3),
        vaccel.SRDiffusion(threshold=0.2),
        vaccel.Schedule(range(steps), num_steps=steps, reuse="residual"),
    ]


def requests(seed: int = 0) -> list[Request]:
    draw, found = random.Random(seed), []
    for n in range(16):
        steps = draw.randint(6, 14)
        found.append(Request(n, methods(steps)[n % 8], steps, draw.choice((1.0, 3.0, 5.5)), draw.random() < 0.7,
                             draw.randint(1, 2), draw.randint(0, 9)))  # fmt: skip
    return found


def serve(server, wanted, *, each=lambda tick, live, runs: None, seed=0):
    """A server's loop: requests join, make their steps in whatever order, and leave; their runs."""
    runs, waiting, live, tick = {}, list(wanted), [], 0
    order = random.Random(seed)
    while waiting or live:
        for request in [r for r in waiting if r.joins <= tick]:
            waiting.remove(request)
            runs[request.seed] = server.run(request.steps, request.method, guidance=request.guidance)
            live.append(request)
        order.shuffle(live)
        each(tick, live, runs)
        answers = server.step([(runs[r.seed], *r.entry) for r in live])
        for request, answer in zip(live, answers, strict=True):
            if isinstance(answer, Exception):
                request.error = answer
            else:
                request.take(answer)
        live = [r for r in live if r.error is None and r.i < r.steps]
        tick += 1
    return runs
