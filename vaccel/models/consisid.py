"""ConsisID: CogVideoX that attends to a face between its blocks."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Family, Inputs
from .layout import Layout, Part


class ConsisID(Family):
    """``ConsisIDTransformer3DModel``: latents [B, F, C, H, W], those of the image behind their channels.

    Features of the face and the attention to them are computed, and thrown away, where a residual stands in for the
    blocks: they are no blocks.
    """

    name = "consisid"
    transformers = ("ConsisIDTransformer3DModel",)
    blocks = (BlockList("transformer_blocks", "hidden_encoder"),)
    between = True
    batched_guidance = True
    frame_axis = 1
    channel_axis = 2
    shared_config = ("in_channels", "out_channels", "text_embed_dim")
    fresh = ("time_embedding", "norm_final", "norm_out", "proj_out")

    def layout(self, model: nn.Module) -> Layout | None:
        return self.static(Part(0, "hidden_states", axis=2, size=model.config.out_channels))

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        embedding = model.time_proj(inputs["timestep"]).to(inputs["hidden_states"].dtype)
        return model.time_embedding(embedding, inputs.get("timestep_cond"))
