"""Figure 2 (b) of seed 004: how loss and gradient of one consistency model differ over the noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..calibrate.samples import Progress, silent
from ..families import Family
from ..trajectory import Trajectory
from .networks import Networks
from .objective import Draws, Objective
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
        teacher: the model; its ``requires_grad`` flags are left as they were.
        settings: of a plain consistency model (stage "single"): all noise, toward the clean end.
        student: the weights it has by now; the teacher's if left out.
        points: which points; all of them if left out.
        batches: of ``settings.batch`` samples each; the same samples and noise at every point.

    Returns plain data: "points", their "sigma", "loss" and "gradient", and "boundary", the sigma where the phases
    part.  Raises ``ValueError`` for another stage.
    """
    if settings.stage != "single":
        raise ValueError(f"the diagnosis is of a single consistency model, not of the {settings.stage} stage")
    flags = [(p, p.requires_grad) for p in teacher.parameters()]
    network = Networks(settings, family, teacher, None).student
    if student is not None:
        network.load_state_dict(student)
    objective = Objective(settings, trajectory, family, teacher)
    chosen = list(range(settings.points) if points is None else points)
    rows = [[shards[i] for i in range(b * settings.batch, (b + 1) * settings.batch)] for b in range(batches)]
    found: dict[str, list[float]] = {"loss": [], "gradient": []}
    for done, point in enumerate(chosen):
        progress(done, len(chosen), f"point {point}")
        losses, norms = [], []
        for number, samples in enumerate(rows):
            batch = shards.collate(samples).to(next(teacher.parameters()).device)
            first = number * settings.batch
            draws = Draws.of(settings, batch.latents, range(first, first + settings.batch))
            draws.index = torch.full_like(draws.index, point)
            loss = objective.consistency(*objective.pair(network, network, batch, draws))
            network.zero_grad(set_to_none=True)
            loss.backward()
            norms.append(torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm().item())
            losses.append(loss.item())
        found["loss"].append(sum(losses) / len(losses))
        found["gradient"].append(sum(norms) / len(norms))
    progress(len(chosen), len(chosen), "done")
    for p, requires in flags:
        p.requires_grad_(requires)
    sigma = objective.level(torch.tensor(chosen)).sigma.tolist()
    boundary = trajectory.level([settings.boundary]).sigma.item()
    return {"points": chosen, "sigma": sigma, **found, "boundary": boundary, "settings": settings.to_json()}
