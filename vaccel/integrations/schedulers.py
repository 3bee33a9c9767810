"""What a scheduler's prediction says about x_0, and of its path as a flow."""

from __future__ import annotations

from typing import Any

import torch

from .. import flow
from ..flow import Flow


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
    """The run from ``scheduler.timesteps[begin]`` on as a flow; None for a scheduler whose levels nobody knows.

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
