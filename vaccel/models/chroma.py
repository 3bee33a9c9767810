"""Chroma: built like Flux, with one small network for every block's modulation."""

from __future__ import annotations

import torch
from torch import nn

from .dual_stream import SINGLE, DualStream
from .family import Inputs


class Chroma(DualStream):
    """``ChromaTransformer2DModel``: latents [B, tokens, C]; two calls for guidance."""

    name = "chroma"
    transformers = ("ChromaTransformer2DModel",)
    blocks = (DualStream.blocks[0], SINGLE)

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        entries = model.time_text_embed(inputs["timestep"].to(inputs["hidden_states"].dtype) * 1000)
        # Those of the first block's image stream: behind the single blocks' three each.
        first = 3 * len(model.single_transformer_blocks)
        return model.distilled_guidance_layer(entries[:, first : first + 6])
