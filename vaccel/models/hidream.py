"""HiDream: one batched call for guidance, blocks for both streams, then blocks that join them."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .layout import Layout
from .picture import Picture


class HiDream(Picture):
    """``HiDreamImageTransformer2DModel``: latents [B, C, H, W]; every block is given a text layer of its own.

    In the second list of blocks the text follows the picture's tokens.
    """

    name = "hidream"
    transformers = ("HiDreamImageTransformer2DModel",)
    blocks = (
        BlockList("double_stream_blocks", "hidden_encoder"),
        BlockList("single_stream_blocks", joined="hidden"),
    )
    condition = "encoder_hidden_states_t5"
    batched_guidance = True
    shared_config = ("in_channels", "out_channels", "caption_channels", "text_emb_dim")
    fresh = ("t_embedder", "final_layer")

    def rows(self, inputs: Inputs, rows: slice | list[int], layout: Layout | None = None) -> Inputs:
        layers = inputs["encoder_hidden_states_llama3"]  # [layers, rows, tokens, width]
        return {**super().rows(inputs, rows, layout), "encoder_hidden_states_llama3": layers[:, rows]}

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return model.t_embedder(inputs["timesteps"], inputs["hidden_states"].dtype)

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        return self.modulation(model, {**inputs, "timesteps": timesteps}, projected)
