"""Ovis-Image: built like Flux, two calls for guidance."""

from __future__ import annotations

import torch
from torch import nn

from .dual_stream import DualStream
from .family import Inputs


class OvisImage(DualStream):
    """``OvisImageTransformer2DModel``: latents [B, tokens, C]."""

    name = "ovis-image"
    transformers = ("OvisImageTransformer2DModel",)
    indexes_blocks = False

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        dtype = inputs["hidden_states"].dtype
        return model.timestep_embedder(model.time_proj(inputs["timestep"].to(dtype) * 1000).to(dtype))
