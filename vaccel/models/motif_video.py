"""Motif-Video: two lists of blocks that carry text and video apart, the end of the second one a decoder."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .video import Video


class MotifVideo(Video):
    """``MotifVideoTransformer3DModel``: latents [B, C, F, H, W], conditions behind their channels; calls by a guider.

    The decoder starts from what entered the first block, and has what the other blocks made of it in the text's place.
    """

    name = "motif-video"
    transformers = ("MotifVideoTransformer3DModel",)
    blocks = (
        BlockList("transformer_blocks", "hidden_encoder"),
        BlockList("single_transformer_blocks", "hidden_encoder"),
    )
    batched_guidance = False
    shared_config = ("in_channels", "out_channels", "text_embed_dim", "image_embed_dim")
    fresh = ("time_text_embed", "norm_out", "proj_out")

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        shape, image = super().encoder_shape(model, inputs), inputs.get("image_embeds")
        return shape if shape is None or image is None else (shape[0], shape[1] + image.shape[1], shape[2])

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return model.time_text_embed(inputs["timestep"])
