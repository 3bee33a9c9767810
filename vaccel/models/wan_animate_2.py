"""Wan Animate 2: lists of samples; a first pass leaves keys and values of a reference behind."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Family, Inputs


class WanAnimate2(Family):
    """``WanAnimate2Transformer3DModel``: a list of latents [C, F, H, W].

    The pass that fills the cache of keys and values comes before the first step, which is always computed.
    """

    name = "wan-animate-2"
    transformers = ("WanAnimate2Transformer3DModel",)
    blocks = (BlockList("blocks"),)
    batched_guidance = False
    frame_axis = 2
    shared_config = ("in_dim", "out_dim", "text_dim", "use_img_emb")

    def skipped(self, model: nn.Module, inputs: Inputs) -> tuple[tuple[int, ...], Inputs]:
        if not inputs.get("is_uncondtion"):  # spelt so
            return (), inputs
        # The unconditional branch leaves its tenth block out.
        return (9,) if len(model.blocks) > 9 else (), {**inputs, "is_uncondtion": False}

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        frequencies = model.timesteps_proj(inputs["timestep"]).to(next(model.time_embedding.parameters()).dtype)
        embedding = model.time_embedding(frequencies)
        return model.time_projection(embedding) if projected else embedding
