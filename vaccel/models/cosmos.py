"""Cosmos 1, 2 and 2.5: two calls for guidance, which is counted from the conditional prediction on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .family import BlockList, Inputs
from .video import Video, adaln_embedding


class Cosmos(Video):
    """``CosmosTransformer3DModel``: latents [B, C, F, H, W]; given frames are among them, marked by a mask.

    A ControlNet's residuals are arguments of the blocks: a reused residual holds those of the step that it is from.
    """

    name = "cosmos"
    transformers = ("CosmosTransformer3DModel",)
    blocks = (BlockList("transformer_blocks"),)
    batched_guidance = False
    shared_config = ("in_channels", "out_channels", "text_embed_dim", "concat_padding_mask")
    fresh = ("time_embed", "norm_out", "proj_out")

    def guidance(self, pipe: Any, stage: int, arguments: Mapping[str, Any]) -> float:
        return super().guidance(pipe, stage, arguments) + 1  # c + w (c - u)

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        def embed(timestep: torch.Tensor, hidden_dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return model.time_embed(inputs["hidden_states"], timestep)

        return adaln_embedding(embed, inputs, projected)
