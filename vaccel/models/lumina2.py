"""Lumina 2: one sequence of text and image, two calls for guidance, whose norms are then the conditional branch's."""

from __future__ import annotations

import torch
from torch import nn

from .embedded import Embedded
from .family import BlockList, Inputs
from .picture import Picture
from .rescaled import Rescaled


class Lumina2(Rescaled, Embedded, Picture):
    """``Lumina2Transformer2DModel``: latents [B, C, H, W]; text and image are refined before they are joined.

    The pipeline leaves the norms out of its guidance with ``cfg_normalization=False``; ``guided`` always has them.
    """

    name = "lumina2"
    transformers = ("Lumina2Transformer2DModel",)
    blocks = (BlockList("layers", joined="encoder"),)
    indexes_blocks = False
    batched_guidance = False
    shared_config = ("in_channels", "out_channels", "cap_feat_dim")

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        return 1 - t / 1000

    def width(self, model: nn.Module) -> int:
        return model.config.hidden_size

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        mask = inputs.get("encoder_attention_mask")
        if mask is None:
            return None
        # The text is padded, and joined without its padding.
        return len(mask), int(mask.sum(1).max()), self.width(model)

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        embed = model.time_caption_embed
        return embed.timestep_embedder(embed.time_proj(inputs["timestep"]).type_as(inputs["hidden_states"]))
