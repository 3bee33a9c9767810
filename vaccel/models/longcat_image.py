"""LongCat-Image: built like Flux, two calls for guidance, which never makes a token's norm larger."""

from __future__ import annotations

import torch
from torch import nn

from .dual_stream import DualStream
from .family import Inputs


class LongCatImage(DualStream):
    """``LongCatImageTransformer2DModel``: latents [B, tokens, C], a picture to edit behind them.

    Editing, and ``enable_cfg_renorm=False``, leave the norms out of their guidance; ``guided`` always has them.
    """

    name = "longcat-image"
    transformers = ("LongCatImageTransformer2DModel",)
    indexes_blocks = False

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        dtype = inputs["hidden_states"].dtype
        return model.time_embed(inputs["timestep"].to(dtype) * 1000, dtype)

    def guided(
        self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """u + w (c - u), a token whose norm is larger than c's scaled to that; the norms in fp32."""
        combined = super().guided(cond, uncond, scale, out)
        norms = [torch.linalg.vector_norm(v, dim=-1, keepdim=True, dtype=torch.float32) for v in (cond, combined)]
        return combined.mul_((norms[0] / (norms[1] + 1e-8)).clamp_(max=1))
