"""Flux.2 and its Klein models: two lists of blocks, whose modulation is shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .dual_stream import SINGLE, DualStream
from .family import Family, Inputs


class Flux2(DualStream):
    """``Flux2Transformer2DModel``: latents [B, tokens, C], pictures to edit behind them.

    Guidance is an embedded number, or a second call.  With a cache of keys and values the first step has the pictures'
    tokens before the noisy ones, and later steps have none of them.
    """

    name = "flux2"
    transformers = ("Flux2Transformer2DModel",)
    blocks = (DualStream.blocks[0], SINGLE)
    # A layout that it says itself: what precedes the latents changes from call to call.
    layout = Family.layout

    def latents(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        pictures = _pictures(inputs)
        return inputs["hidden_states"][:, pictures:] if pictures else inputs["hidden_states"]

    def entering(self, hidden: torch.Tensor, arguments: Mapping[str, Any]) -> torch.Tensor:
        pictures = _pictures(arguments.get("joint_attention_kwargs") or {})
        return hidden[:, pictures:] if pictures else hidden

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        shape, pictures = super().encoder_shape(model, inputs), _pictures(inputs)
        # A state with the pictures' tokens is of no use to a call without.
        return (shape[0], shape[1] + pictures, shape[2]) if shape is not None and pictures else shape

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        dtype, guidance = inputs["hidden_states"].dtype, inputs.get("guidance")
        if guidance is not None:
            guidance = guidance[:1].to(dtype) * 1000  # the same for all rows
        return model.time_guidance_embed(inputs["timestep"].to(dtype) * 1000, guidance)

    def projection(self, model: nn.Module, embedding: torch.Tensor) -> torch.Tensor:
        return model.double_stream_modulation_img(embedding)


def _pictures(arguments: Mapping[str, Any]) -> int:
    """How many tokens of pictures come before the noisy ones."""
    return arguments.get("num_ref_tokens", 0) if arguments.get("kv_cache_mode") == "extract" else 0
