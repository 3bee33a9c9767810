"""Bria 3.2 and FIBO: built like Flux, one batched call for guidance."""

from __future__ import annotations

import torch
from torch import nn

from .dual_stream import SINGLE, DualStream
from .family import Inputs


class Bria(DualStream):
    """``BriaTransformer2DModel``: latents [B, tokens, C]."""

    name = "bria"
    transformers = ("BriaTransformer2DModel",)
    batched_guidance = True
    converts_timesteps = False

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        dtype = inputs["hidden_states"].dtype
        return model.time_embed(inputs["timestep"].to(dtype), dtype=dtype)


class BriaFibo(Bria):
    """``BriaFiboTransformer2DModel``: as Bria's; every block is given another layer of the text encoder.

    Those layers are projected at every call, in vain where the residual stands in for the blocks.
    """

    name = "bria-fibo"
    transformers = ("BriaFiboTransformer2DModel",)
    blocks = (DualStream.blocks[0], SINGLE)
