"""DiT: pictures of a class, one batched call for guidance, uniform blocks that embed the timestep each by itself."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .picture import Picture


class DiT(Picture):
    """``DiTTransformer2DModel``: latents [B, C, H, W]; a learned variance follows the prediction.

    The rows of its batched guidance are [conditional; unconditional].
    """

    name = "dit"
    transformers = ("DiTTransformer2DModel",)
    blocks = (BlockList("transformer_blocks"),)
    block_attributes = ("norm1",)
    shared_config = ("in_channels", "out_channels", "num_embeds_ada_norm")
    fresh = ("proj_out_1", "proj_out_2")

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        embedder = model.transformer_blocks[0].norm1.emb  # the head's, too
        return embedder(inputs["timestep"], inputs["class_labels"], hidden_dtype=inputs["hidden_states"].dtype)

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        return None  # a class has a row a sample

    def guided(
        self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().guided(uncond, cond, scale, out)  # the rows are the other way round
