"""Krea 2: packed latents, one sequence of text and image, guidance that is counted from zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .dual_stream import DualStream
from .family import BlockList, Inputs


class Krea2(DualStream):
    """``Krea2Transformer2DModel``: latents [B, tokens, C]; two calls for guidance, c + w (c - u).

    The layers of the text encoder are fused at every call, in vain where the residual stands in for the blocks.
    """

    name = "krea2"
    transformers = ("Krea2Transformer2DModel",)
    blocks = (BlockList("transformer_blocks", joined="encoder"),)
    indexes_blocks = False
    shared_config = ("in_channels", "text_hidden_dim", "num_text_layers")

    def guidance(self, pipe: Any, stage: int, arguments: Mapping[str, Any]) -> float:
        return super().guidance(pipe, stage, arguments) + 1

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        return model.time_embed(inputs["timestep"], dtype=inputs["hidden_states"].dtype)

    def projection(self, model: nn.Module, embedding: torch.Tensor) -> torch.Tensor:
        return model.time_mod_proj(functional.gelu(embedding, approximate="tanh"))
