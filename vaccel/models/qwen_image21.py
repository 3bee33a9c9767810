"""Qwen-Image 2.1: text, pictures to be edited and latents in one sequence, whose keys and values are kept."""

from __future__ import annotations

from math import prod

import torch
from torch import nn

from .family import BlockList, Family, Inputs
from .packed import Packed


class QwenImage21(Packed):
    """``QwenImage21Transformer2DModel``: latents [B, tokens, C], behind those of pictures to be edited.

    It answers with the whole sequence, of which the pipeline takes the end.  With a cache of keys and values all that
    goes before the latents is computed at the first step and left away at the others.
    """

    name = "qwen-image-2.1"
    transformers = ("QwenImage21Transformer2DModel",)
    blocks = (BlockList("transformer_blocks", joined="encoder"),)
    block_attributes = ("attn",)
    batched_guidance = False
    shared_config = ("in_channels", "out_channels", "patch_size", "context_in_dim", "causal_condition")
    fresh = ("time_text_embed", "modulation", "norm_out", "proj_out")
    # A layout that it says itself: what precedes the latents changes from call to call.
    layout = Family.layout

    def latents(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        return self.prediction(model, inputs, inputs["hidden_states"])

    def prediction(self, model: nn.Module, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        tokens = prod(inputs["img_shapes"][0][-1])  # of the first sample; all have the same
        return output if output.shape[1] == tokens else output[:, -tokens:]

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        return t / 1000

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        # Blocks carry the latents alone where the rest is cached.
        return None if inputs.get("kv_cache_mode") == "cached" else super().encoder_shape(model, inputs)

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        x = inputs["hidden_states"]
        embedding = model.time_text_embed(inputs["timestep"].to(x.dtype), x)
        return model.modulation(embedding) if projected else embedding

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        # Rounded where the pipeline rounds: to the latents' dtype first, divided then.
        return super().modulations(model, inputs, self.timestep(timesteps.to(inputs["hidden_states"].dtype)), projected)
