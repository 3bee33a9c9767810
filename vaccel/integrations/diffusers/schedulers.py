"""What a scheduler's prediction says about x_0, and of its path as a flow."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import torch

from ...planning import flow
from ...planning.flow import Flow


def denoised(scheduler: Any, prediction: torch.Tensor, x: torch.Tensor, index: int) -> torch.Tensor:
    """The estimate of x_0 that ``prediction`` stands for at ``scheduler.timesteps[index]``; shapes [B, ...].

    Flow matching: x - sigma v.  Diffusion: from the cumulative alphas, for predictions of noise, v or the sample.
    Raises ``ValueError`` for a prediction type it does not know.
    """
    config = scheduler.config
    kind = config.get("prediction_type", "flow_prediction")
    if kind == "flow_prediction" or config.get("use_flow_sigmas", False):
        return x - scheduler.sigmas[index].to(x.device, x.dtype) * prediction
    cumulative = scheduler.alphas_cumprod.to(x.device)[scheduler.timesteps[index].long()]
    alpha, sigma = cumulative.sqrt().to(x.dtype), (1 - cumulative).sqrt().to(x.dtype)
    if kind == "v_prediction":
        return alpha * x - sigma * prediction
    if kind == "epsilon":
        return (x - sigma * prediction) / alpha
    if kind == "sample":
        return prediction
    raise ValueError(f"no x_0 estimate for prediction_type {kind!r}")


def flow_of(scheduler: Any, begin: int = 0) -> Flow | None:
    """The run from ``scheduler.timesteps[begin]`` on as a flow; None for a scheduler whose noise levels are unknown.

    Raises ``ValueError`` for a prediction type that says nothing of a velocity.
    """
    config = scheduler.config
    kind = config.get("prediction_type", "flow_prediction")
    if kind == "flow_prediction" or config.get("use_flow_sigmas", False):
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is None:
            return None
        return Flow(tuple(float(s) for s in sigmas[begin : len(scheduler.timesteps) + 1]))
    if getattr(scheduler, "alphas_cumprod", None) is None:
        return None
    cumulative = scheduler.alphas_cumprod.double().cpu()[scheduler.timesteps[begin:].long().cpu()]
    pairs = [(a**0.5, (1 - a) ** 0.5) for a in cumulative.tolist()]
    levels = (*(flow.level(a, s) for a, s in pairs), 0.0)
    return Flow(levels, tuple(flow.scales(kind, a, s) for a, s in pairs))


@torch.no_grad()
def with_response(flow: Flow, scheduler: Any, begin: int = 0) -> Flow:
    """The same flow with the solver's response: a copy of the scheduler is given unit velocities, one at a time.

    Solvers are linear in what the model says, whatever their order and history, so this is exact for any.  One that
    cannot be run like this (it draws noise, or wants more than its step's arguments) leaves the response out.  What it
    draws comes from a generator of its own, and the user's are left as they were.
    """
    before = torch.get_rng_state()
    try:
        return _probed(flow, scheduler, begin)
    finally:
        if not torch.equal(torch.get_rng_state(), before):
            torch.set_rng_state(before)


def _probed(flow: Flow, scheduler: Any, begin: int) -> Flow:
    steps, copied = flow.num_steps, copy.deepcopy(scheduler)
    takes_generator = "generator" in inspect.signature(copied.step).parameters
    own = {"generator": torch.Generator().manual_seed(0)} if takes_generator else {}
    x, rows = torch.zeros(steps, 1, dtype=torch.float64), []
    for i, t in enumerate(scheduler.timesteps[begin:]):
        rows.append(x[:, 0].tolist())
        velocity = torch.zeros_like(x)
        velocity[i] = 1
        if flow.scales is not None:
            of_prediction, of_x = flow.scales[i]
            velocity = (velocity - of_x * x) / of_prediction
        try:
            x = copied.step(velocity.cpu(), t, x, return_dict=False, **own)[0].double().cpu()
        except (TypeError, ValueError, RuntimeError, IndexError):
            return flow
    rows.append(x[:, 0].tolist())
    causal = all(value == 0 for n, row in enumerate(rows) for value in row[n:])
    finite = bool(torch.isfinite(torch.tensor(rows)).all())
    return dataclasses.replace(flow, response=tuple(map(tuple, rows))) if causal and finite else flow
