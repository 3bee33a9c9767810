"""EasyAnimate: one batched call for guidance, blocks that carry the text along."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .video import Video


class EasyAnimate(Video):
    """``EasyAnimateTransformer3DModel``: latents [B, C, F, H, W]; conditions have arguments of their own."""

    name = "easyanimate"
    transformers = ("EasyAnimateTransformer3DModel",)
    blocks = (BlockList("transformer_blocks", "hidden_encoder"),)
    indexes_blocks = False
    batched_guidance = True
    shared_config = ("in_channels", "out_channels", "text_embed_dim", "text_embed_dim_t5")
    fresh = ("time_embedding", "norm_final", "norm_out", "proj_out")

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        shape, other = super().encoder_shape(model, inputs), inputs.get("encoder_hidden_states_t5")
        return shape if shape is None or other is None else (shape[0], shape[1] + other.shape[1], shape[2])

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        embedding = model.time_proj(inputs["timestep"]).to(inputs["hidden_states"].dtype)
        return model.time_embedding(embedding, inputs.get("timestep_cond"))
