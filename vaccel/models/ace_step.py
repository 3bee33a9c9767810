"""ACE-Step: uniform blocks, every second one with a window."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .packed import Packed


class AceStep(Packed):
    """``AceStepTransformer1DModel``: latents [B, T, C].

    The rows of its batched guidance are [conditional; unconditional].  The pipeline's guidance has a memory of earlier
    steps; ``guided`` leaves that out, so a method that watches guided predictions sees other ones.
    """

    name = "ace-step"
    transformers = ("AceStepTransformer1DModel",)
    blocks = (BlockList("layers"),)
    block_attributes = ("self_attn",)
    converts_timesteps = False
    shared_config = ("in_channels", "audio_acoustic_hidden_dim", "encoder_hidden_size")
    fresh = ("time_embed", "time_embed_r", "scale_shift_table", "proj_out_conv")

    def width(self, model: nn.Module) -> int:
        return model.config.hidden_size

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        # That of the distance to the next timestep is the same at all steps.
        return model.time_embed(inputs["timestep"])[1 if projected else 0]

    def guided(
        self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().guided(uncond, cond, scale, out)  # the rows are the other way round
