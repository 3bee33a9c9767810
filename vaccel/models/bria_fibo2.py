"""Bria Fibo 2: a digest of the text and the picture in one sequence; some blocks read the text itself."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .picture import Picture


class BriaFibo2(Picture):
    """``BriaFibo2Transformer2DModel``: latents [B, C, H, W]; pictures to be edited follow theirs in the sequence.

    The digest goes before them, or behind where its length is not the same in all rows.  Its resampler and the
    latents' refiner are computed where the blocks are skipped, too.
    """

    name = "bria-fibo-2"
    transformers = ("BriaFibo2Transformer2DModel",)
    blocks = (BlockList("layers", joined="encoder"),)
    batched_guidance = False
    converts_timesteps = True
    shared_config = ("in_channels", "patch_size", "cap_feat_dim", "injection_layer_ids")
    fresh = ("t_embedder", "final_layer")

    def answered(self, model: nn.Module) -> int:
        return model.config.in_channels

    def width(self, model: nn.Module) -> int:
        return model.config.dim

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        return t / 1000

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        """With the texts' own lengths, which the digest's depend on."""
        text, mask = inputs.get("encoder_hidden_states"), inputs.get("encoder_attention_mask")
        if text is None:
            return None
        lengths = () if mask is None else mask.sum(dim=1).tolist()
        return len(text), text.shape[2], self.width(model), *lengths

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return model.t_embedder(inputs["timestep"] * model.config.t_scale)

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        return super().modulations(model, inputs, self.timestep(timesteps), projected)
