"""cfg_combine(c, u, w) = u + w (c - u)."""

import torch

from ._check import same_shape


def cfg_combine(
    cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Classifier-free guidance (seed 000, eq. 2) in the order of operations diffusers' pipelines use.

    [B, ...] twice and the guidance scale w -> [B, ...].  Raises ``ValueError`` for different shapes.
    """
    same_shape("cfg_combine", cond=cond, uncond=uncond)
    guided = torch.sub(cond, uncond, out=out) if out is not None else cond - uncond
    return guided.mul_(scale).add_(uncond)
