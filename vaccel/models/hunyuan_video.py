"""HunyuanVideo and what is built like it: two lists of blocks that carry text and video apart."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Family, Inputs
from .layout import Layout, Part


class HunyuanVideo(Family):
    """``HunyuanVideoTransformer3DModel``: latents [B, C, F, H, W]; image-to-video appends condition channels.

    Guidance is an embedded number, or a second call where the pipeline has true CFG.
    """

    name = "hunyuan-video"
    transformers = ("HunyuanVideoTransformer3DModel",)
    blocks = (
        BlockList("transformer_blocks", "hidden_encoder"),
        BlockList("single_transformer_blocks", "hidden_encoder"),
    )
    batched_guidance = False
    frame_axis = 2
    shared_config = ("in_channels", "out_channels", "text_embed_dim", "pooled_projection_dim")

    def layout(self, model: nn.Module) -> Layout | None:
        return self.static(Part(0, "hidden_states", axis=1, size=model.config.out_channels))

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        embed, x = model.time_text_embed, inputs["hidden_states"]
        return embed.timestep_embedder(embed.time_proj(inputs["timestep"]).to(x.dtype))


class HunyuanVideoFramepack(HunyuanVideo):
    """``HunyuanVideoFramepackTransformer3DModel``: latents [B, C, F, H, W] of a section; its history goes before it."""

    name = "hunyuan-video-framepack"
    transformers = ("HunyuanVideoFramepackTransformer3DModel",)

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        shape, mask = super().encoder_shape(model, inputs), inputs.get("encoder_attention_mask")
        if shape is None or mask is None:
            return shape
        # A single text is cut to its words; those of the image go before it.
        words = int(mask.sum()) if shape[0] == 1 else shape[1]
        return shape[0], inputs["image_embeds"].shape[1] + words, shape[2]
