"""Nucleus-Image: packed latents, two calls for guidance, blocks whose tokens choose experts."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .packed import Packed
from .rescaled import Rescaled


class NucleusImage(Rescaled, Packed):
    """``NucleusMoEImageTransformer2DModel``: latents packed two by two, [B, tokens, C]; the text stays as it is."""

    name = "nucleus-image"
    transformers = ("NucleusMoEImageTransformer2DModel",)
    blocks = (BlockList("transformer_blocks"),)
    indexes_blocks = False
    batched_guidance = False
    shared_config = ("in_channels", "out_channels", "patch_size", "joint_attention_dim")
    fresh = ("time_text_embed", "norm_out", "proj_out")

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        return t / 1000

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        x = inputs["hidden_states"]
        return model.time_text_embed(inputs["timestep"].to(x.dtype), x)

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        # Rounded where the pipeline rounds: to the latents' dtype first, divided then.
        return super().modulations(model, inputs, self.timestep(timesteps.to(inputs["hidden_states"].dtype)), projected)
