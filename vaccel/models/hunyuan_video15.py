"""HunyuanVideo 1.5: two calls for guidance, blocks that carry three kinds of conditions along."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .video import Video


class HunyuanVideo15(Video):
    """``HunyuanVideo15Transformer3DModel``: latents [B, C, F, H, W], conditions and a mask behind their channels."""

    name = "hunyuan-video-1.5"
    transformers = ("HunyuanVideo15Transformer3DModel",)
    blocks = (BlockList("transformer_blocks", "hidden_encoder"),)
    indexes_blocks = False
    batched_guidance = False
    converts_timesteps = True
    shared_config = ("in_channels", "out_channels", "text_embed_dim", "text_embed_2_dim", "image_embed_dim")
    fresh = ("time_embed", "norm_out", "proj_out")

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        others = [inputs.get(name) for name in ("encoder_hidden_states_2", "image_embeds")]
        shape = super().encoder_shape(model, inputs)
        if shape is None:
            return None
        return shape[0], shape[1] + sum(t.shape[1] for t in others if t is not None), shape[2]

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        # The pipelines round timesteps to the latents' dtype.
        return model.time_embed(inputs["timestep"].to(inputs["hidden_states"].dtype), inputs.get("timestep_r"))

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        if inputs.get("timestep_r") is not None:
            return None
        return super().modulations(model, inputs, timesteps, projected)
