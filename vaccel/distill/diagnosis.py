"""Figure 2 (b) of arXiv 2506.03123: how loss and gradient of one consistency model differ over the noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..calibrate.samples import Progress, silent
from ..models import Family
from ..planning.trajectory import Trajectory
from .networks import Networks
from .objective import Draws, Objective
from .outputs import check_counts
from .settings import Distillation
from .shards import Shards


def diagnose(
    teacher: nn.Module,
    family: Family,
    trajectory: Trajectory,
    shards: Shards,
    settings: Distillation,
    *,
    student: dict[str, torch.Tensor] | None = None,
    points: Sequence[int] | None = None,
    batches: int = 2,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Consistency loss and norm of its gradient at each point of the trajectory, means over ``batches``.

    Args:
        teacher: the model; its ``requires_grad`` flags are restored.
        settings: of a plain consistency model (stage "single"): all noise, toward the clean end.
        student: the weights of a trained student; the teacher's by default.
        points: indices of points; all by default.
        batches: of ``settings.batch`` samples each; the same samples and noise at every point.

    Returns plain data: "points", their "sigma", "loss" and "gradient", and "boundary", the sigma between the
    phases.  Raises ``ValueError`` for another stage, and for points and batches out of range.
    """
    check_counts(batches=(batches, 1))
    chosen = list(range(settings.points) if points is None else points)
    if not chosen or not all(isinstance(p, int) and 0 <= p < settings.points for p in chosen):
        raise ValueError(f"points are whole numbers from 0 to {settings.points - 1}, at least one, got {chosen}")
    if settings.stage != "single":
        raise ValueError(f"the diagnosis is of a single consistency model, not of the {settings.stage} stage")
    flags = [(p, p.requires_grad) for p in teacher.parameters()]
    network = Networks(settings, family, teacher, None).student
    if student is not None:
        network.load_state_dict(student)
    objective = Objective(settings, trajectory, family, teacher)
    found: dict[str, list[float]] = {"loss": [], "gradient": []}
    try:
        for done, point in enumerate(chosen):
            progress(done, len(chosen), f"point {point}")
            values = [_loss_and_gradient(objective, network, shards, point, number) for number in range(batches)]
            for name, means in zip(found, zip(*values, strict=True), strict=True):
                found[name].append(sum(means) / batches)
    finally:
        for p, requires in flags:
            p.requires_grad_(requires)
    progress(len(chosen), len(chosen), "done")
    sigma = objective.level(torch.tensor(chosen)).sigma.tolist()
    boundary = trajectory.level([settings.boundary]).sigma.item()
    return {"points": chosen, "sigma": sigma, **found, "boundary": boundary, "settings": settings.to_json()}


def _loss_and_gradient(
    objective: Objective, network: nn.Module, shards: Shards, point: int, number: int
) -> tuple[float, float]:
    """(loss, gradient norm) of batch ``number``, with every sample at one point."""
    slots = range(number * objective.settings.batch, (number + 1) * objective.settings.batch)
    batch = shards.collate([shards[i % len(shards)] for i in slots]).to(next(network.parameters()).device)
    draws = Draws.of(objective.settings, batch.latents, slots)
    draws.index = torch.full_like(draws.index, point)
    loss = objective.consistency(*objective.pair(network, network, batch, draws))
    network.zero_grad(set_to_none=True)
    loss.backward()
    norms = [p.grad.norm() for p in network.parameters() if p.grad is not None]
    return loss.item(), torch.stack(norms).norm().item()
