"""Stable Audio: one batched call for guidance, uniform blocks."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Family, Inputs
from .layout import Layout, Part


class StableAudio(Family):
    """``StableAudioDiTModel``: latents [B, C, T]; a token of the timestep and of the durations goes before them."""

    name = "stable-audio"
    transformers = ("StableAudioDiTModel",)
    blocks = (BlockList("transformer_blocks"),)
    indexes_blocks = False
    batched_guidance = True
    spatial = False
    shared_config = ("in_channels", "out_channels", "cross_attention_input_dim", "global_states_input_dim")
    fresh = ("timestep_proj", "proj_out")

    def layout(self, model: nn.Module) -> Layout | None:
        return self.static(Part(0, "hidden_states"))

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        # The pipeline gives one timestep for all rows.
        return model.timestep_proj(model.time_proj(inputs["timestep"].to(model.dtype)))
