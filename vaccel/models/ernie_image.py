"""ERNIE-Image: one sequence of image and text, its tokens before its rows; one batched call for guidance."""

from __future__ import annotations

import torch
from torch import nn

from .embedded import Embedded
from .family import BlockList, Inputs
from .picture import Picture


class ErnieImage(Embedded, Picture):
    """``ErnieImageTransformer2DModel``: latents [B, C, H, W]; hidden states are [tokens, B, width]."""

    name = "ernie-image"
    transformers = ("ErnieImageTransformer2DModel",)
    blocks = (BlockList("layers", joined="hidden", tokens_first=True),)
    indexes_blocks = False
    condition = "text_bth"
    batched_guidance = True
    converts_timesteps = False
    shared_config = ("in_channels", "out_channels", "text_in_dim")

    def width(self, model: nn.Module) -> int:
        return model.config.hidden_size

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        return model.time_embedding(model.time_proj(inputs["timestep"]).to(inputs["hidden_states"].dtype))

    def projection(self, model: nn.Module, embedding: torch.Tensor) -> torch.Tensor:
        return model.adaLN_modulation(embedding)
