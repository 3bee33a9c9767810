"""Flux: packed latents, blocks for both streams, then blocks that join them."""

from __future__ import annotations

from .family import BlockList
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
