"""Flux: packed latents, blocks for both streams, then blocks that join them."""

from __future__ import annotations

from torch import nn

from .family import BlockList
from .layout import Layout, Part
from .packed import Packed


class Flux(Packed):
    """``FluxTransformer2DModel`` (Flux.1, Kontext, Fill, Control, ControlNet): latents [B, tokens, C].

    Guidance is an embedded number, or a second call where the pipeline has true CFG.
    """

    name = "flux"
    transformers = ("FluxTransformer2DModel",)
    blocks = (
        BlockList("transformer_blocks", "encoder_hidden"),
        BlockList("single_transformer_blocks", "encoder_hidden"),
    )
    batched_guidance = False
    shared_config = ("in_channels", "joint_attention_dim", "pooled_projection_dim", "axes_dims_rope")

    def layout(self, model: nn.Module) -> Layout | None:
        # Fill and Control append the picture's channels to the noisy ones.
        return self.static(Part(0, "hidden_states", axis=2, size=model.out_channels))
