"""What families share whose pipelines give the guided prediction the norm of the conditional one."""

from __future__ import annotations

from typing import ClassVar

import torch

from .family import Family


class Rescaled(Family):
    """Guidance is u + w (c - u), scaled to the norm that c has along ``norm_axis``; the norms in fp32."""

    norm_axis: ClassVar[int] = -1

    def guided(
        self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        combined = super().guided(cond, uncond, scale, out)
        ours, theirs = (
            torch.linalg.vector_norm(v, dim=self.norm_axis, keepdim=True, dtype=torch.float32) for v in (combined, cond)
        )
        return combined.mul_(theirs / ours.clamp_min(1e-6))
