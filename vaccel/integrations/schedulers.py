"""What a scheduler's prediction says about x_0."""

from __future__ import annotations

from typing import Any

import torch


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
