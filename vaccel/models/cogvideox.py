"""CogVideoX: one batched call for guidance, blocks that carry the text along, two kinds of position embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .family import BlockList, Family, Inputs


class CogVideoX(Family):
    """``CogVideoXTransformer3DModel``: latents [B, F, C, H, W]; 5B rotates positions, 2B adds them."""

    name = "cogvideox"
    transformers = ("CogVideoXTransformer3DModel",)
    blocks = (BlockList("transformer_blocks", "hidden_encoder"),)
    indexes_blocks = False
    batched_guidance = True
    frame_axis = 1
    channel_axis = 2
    row_arguments = ("hidden_states", "encoder_hidden_states", "timestep", "timestep_cond", "ofs")
    shared_config = ("in_channels", "out_channels", "text_embed_dim")
    fresh = ("time_embedding", "norm_final", "norm_out", "proj_out")

    def latents(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        x = inputs["hidden_states"]
        channels = model.config.out_channels
        return x if x.shape[2] == channels else x[:, :, :channels]

    def encode(self, pipe: Any, clip: torch.Tensor) -> torch.Tensor:
        latents = self._modes(pipe, clip).permute(0, 2, 1, 3, 4) * pipe.vae.config.scaling_factor
        # CogVideoX 1.5 fills frames up to whole patches at the front, where the pipeline cuts them off again.
        missing = -latents.shape[1] % (pipe.transformer.config.patch_size_t or 1)
        return torch.cat([latents[:, :1]] * missing + [latents], dim=1).contiguous()

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        embedding = model.time_proj(inputs["timestep"]).to(inputs["hidden_states"].dtype)
        return model.time_embedding(embedding, inputs.get("timestep_cond"))

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        if inputs.get("timestep_cond") is not None:
            return None
        return super().modulations(model, inputs, timesteps, projected)

    def small_inputs(self, small: nn.Module, inputs: Inputs) -> Inputs:
        if small.config.use_rotary_positional_embeddings:
            return inputs
        return {**inputs, "image_rotary_emb": None}

    def check_small(self, large: nn.Module, small: nn.Module) -> None:
        super().check_small(large, small)
        if not small.config.use_rotary_positional_embeddings:
            return
        if not large.config.use_rotary_positional_embeddings:
            raise ValueError(
                "the small model needs rotary position embeddings, which the pipeline only makes for a large model "
                "that uses them"
            )
        if small.config.attention_head_dim != large.config.attention_head_dim:
            raise ValueError(
                f"the small model's rotary embeddings are {small.config.attention_head_dim} wide, the large model's "
                f"{large.config.attention_head_dim}: the pipeline makes one set for both"
            )
