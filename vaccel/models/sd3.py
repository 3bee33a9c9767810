"""Stable Diffusion 3 and 3.5: joint blocks, the last of which gives no text."""

from __future__ import annotations

import torch
from torch import nn

from .embedded import Embedded
from .family import BlockList, Inputs
from .picture import Picture


class SD3(Embedded, Picture):
    """``SD3Transformer2DModel``: latents [B, C, H, W]; one batched call for guidance, of three parts with PAG.

    A further call may ask for some blocks to be left out.  What a ControlNet adds between the blocks, the residual has.
    """

    name = "sd3"
    transformers = ("SD3Transformer2DModel",)
    blocks = (BlockList("transformer_blocks", "encoder_hidden"),)
    between = True
    block_attributes = ("context_pre_only",)
    converts_timesteps = False
    shared_config = ("in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim")

    def skipped(self, model: nn.Module, inputs: Inputs) -> tuple[tuple[int, ...], Inputs]:
        asked = inputs.get("skip_layers")
        return (tuple(sorted(asked)), {**inputs, "skip_layers": None}) if asked else ((), inputs)

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        embed = model.time_text_embed  # the text's part of it stays the same
        return embed.timestep_embedder(embed.time_proj(inputs["timestep"]).to(inputs["hidden_states"].dtype))
