"""AnyFlow: one batched call for guidance, uniform blocks that are told where a step goes."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Family, Inputs
from .layout import Layout, Part


class AnyFlow(Family):
    """``AnyFlowTransformer3DModel``: latents [B, F, C, H, W]; every frame has a timestep and the one it goes to."""

    name = "anyflow"
    transformers = ("AnyFlowTransformer3DModel",)
    blocks = (BlockList("blocks"),)
    indexes_blocks = False
    batched_guidance = True
    channel_axis = 2
    frame_axis = 1
    shared_config = ("in_channels", "out_channels", "text_dim", "image_dim")
    fresh = ("condition_embedder.time_embedder", "condition_embedder.time_proj", "scale_shift_table", "proj_out")

    def layout(self, model: nn.Module) -> Layout | None:
        return self.static(Part(0, "hidden_states", axis=2, size=model.config.out_channels))

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        embed, t, r = model.condition_embedder, inputs["timestep"], inputs["r_timestep"]
        delta = r if embed.deltatime_type == "r" else t - r
        return embed.forward_timestep(t, delta, inputs["encoder_hidden_states"], 1)[1 if projected else 0]

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        return None  # a step's depends on where it goes, too
