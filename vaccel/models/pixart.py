"""PixArt: one batched call for guidance, a third branch where attention is perturbed, uniform blocks."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .picture import Picture
from .video import adaln_embedding


class PixArt(Picture):
    """``PixArtTransformer2DModel`` (Alpha, Sigma, PAG): latents [B, C, H, W]; a learned variance follows them."""

    name = "pixart"
    transformers = ("PixArtTransformer2DModel",)
    blocks = (BlockList("transformer_blocks"),)
    indexes_blocks = False
    shared_config = ("in_channels", "out_channels", "caption_channels")
    fresh = ("adaln_single", "scale_shift_table", "proj_out")

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        if not model.use_additional_conditions:
            return adaln_embedding(model.adaln_single, inputs, projected)
        # Sizes are embedded beside the timestep.
        x = inputs["hidden_states"]
        both = model.adaln_single(inputs["timestep"], inputs["added_cond_kwargs"], len(x), x.dtype)
        return both[0 if projected else 1]

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        if model.use_additional_conditions:
            return None
        return super().modulations(model, inputs, timesteps, projected)
