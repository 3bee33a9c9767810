"""BudCache (arXiv 2606.13496, ICML 2026): a mask of given size searched for by whole runs, then a time grid to suit it.

Skipped steps take the block stack's last residual again.  Stage 1 looks for the B computed steps whose runs end
nearest the full ones, in mean square of the finished latents: simulated annealing, a mutation swaps a computed and a
skipped step outside the first 0.3 B, which stay computed, then hill climbing over at most 20 swaps a round (within 3
steps, and some random ones), as in the release.  Stage 2 keeps the mask and moves the times of all steps (a softmax
over the gaps, so that they stay in order and the ends in place) by gradient descent on the same distance.

Ours: the search starts from the path of least summed open-loop error instead of a random mask, so that fewer runs do
(the release makes 200 and 5 rounds); temperatures are relative to the first loss; several prompts instead of one;
stage 2 descends through the run's own solver, where the release trains under Euler, and through the residual too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .loop import Loop, Scheduled

HOT, COLD = 0.3, 1e-3  # temperatures, in first losses


def again(known: Sequence[int], step: int) -> np.ndarray:
    return np.eye(len(known))[-1]


def budcache(path: Sequence[int], what: str = "residual", grid: Tensor | None = None) -> Scheduled:
    return Scheduled(path, again, what, grid)


def swaps(path: Sequence[int], steps: int, near: int | None = None) -> list[tuple[int, ...]]:
    """Every path with one computed step outside the prefix moved, at most ``near`` steps away."""
    prefix, inside = max(1, int(0.3 * len(path))), set(path)
    found = []
    for i in sorted(inside):
        for n in range(prefix, steps):
            if i >= prefix and n not in inside and (near is None or abs(n - i) <= near):
                found.append(tuple(sorted(inside - {i} | {n})))
    return found


def search(
    loss: Callable[[tuple[int, ...]], float],
    start: Sequence[int],
    steps: int,
    *,
    anneal: int,
    rounds: int,
    neighbours: int = 20,
    seed: int = 0,
) -> tuple[list[int], float]:
    """Stage 1 from the path ``start``: the best path and its loss."""
    draw, seen = random.Random(seed), {}

    def known(path: tuple[int, ...]) -> float:
        if path not in seen:
            seen[path] = loss(path)
        return seen[path]

    path = tuple(start)
    first = now = known(path)
    for i in range(anneal):
        temperature = first * HOT * (COLD / HOT) ** (i / max(anneal - 1, 1))
        other = draw.choice(swaps(path, steps))
        change = known(other) - now
        if change < 0 or draw.random() < math.exp(-change / temperature):
            path, now = other, known(other)
    path = min(seen, key=seen.__getitem__)
    for _ in range(rounds):
        close, far = swaps(path, steps, 3), swaps(path, steps)
        tried = draw.sample(close, min(len(close), neighbours * 3 // 4))
        tried += draw.sample(far, min(len(far), neighbours - len(tried)))
        best = min(tried, key=known)
        if known(best) >= known(path):
            break
        path = best
    return list(path), known(path)


class Grid(torch.nn.Module):
    """Times [T + 1] that fall strictly from the first to the last of ``times``, whatever its parameters are."""

    def __init__(self, times: Tensor):
        super().__init__()
        self.first, self.last = float(times[0]), float(times[-1])
        self.logits = torch.nn.Parameter((times[:-1] - times[1:]).log().float())

    def forward(self) -> Tensor:
        fallen = torch.cumsum(torch.softmax(self.logits.double(), 0), 0)[:-1] * (self.first - self.last)
        ends = fallen.new_tensor([self.first]), fallen.new_tensor([self.last])
        return torch.cat([ends[0], self.first - fallen, ends[1]])


def refine(
    loop: Loop,
    path: Sequence[int],
    prompts: Sequence[str],
    first_seed: int,
    full: Sequence[Tensor],
    *,
    updates: int,
    rate: float,
    batch: int = 2,
    what: str = "residual",
) -> tuple[Tensor, list[float]]:
    """Stage 2: the grid, and the losses on the way.  ``full``: the finished latents of the full runs."""
    grid = Grid(loop.denoiser.grid())
    optimizer = torch.optim.AdamW(grid.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    losses = []
    for update in range(updates):
        optimizer.zero_grad()
        total = 0.0
        for k in range(batch):
            n = (update * batch + k) % len(prompts)
            latents, _ = loop.run(prompts[n], first_seed + n, budcache(path, what, grid().float()))
            loss = (latents - full[n]).square().mean() / batch
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(grid.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(total)
    return grid().detach().float(), losses
