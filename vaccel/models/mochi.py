"""Mochi: one batched call for guidance, blocks that carry the text along."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .video import Video


class Mochi(Video):
    """``MochiTransformer3DModel``: latents [B, C, F, H, W]; its timesteps count from 0 to 1000."""

    name = "mochi"
    transformers = ("MochiTransformer3DModel",)
    blocks = (BlockList("transformer_blocks", "hidden_encoder"),)
    indexes_blocks = False
    batched_guidance = True
    shared_config = ("in_channels", "out_channels", "text_embed_dim")
    fresh = ("time_embed.timestep_embedder", "norm_out", "proj_out")

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        shape = super().encoder_shape(model, inputs)
        return None if shape is None else (*shape[:2], model.config.pooled_projection_dim)

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        embed, x = model.time_embed, inputs["hidden_states"]
        return embed.timestep_embedder(embed.time_proj(inputs["timestep"]).to(x.dtype))
