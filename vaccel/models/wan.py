"""Wan 2.1 and 2.2: two calls for guidance, uniform blocks, one or two transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .family import BlockList, Family, Inputs, computing_dtype


class Wan(Family):
    """``WanTransformer3DModel``: latents [B, C, F, H, W]; image-to-video appends condition channels to them."""

    name = "wan"
    transformers = ("WanTransformer3DModel",)
    blocks = (BlockList("blocks"),)
    batched_guidance = False
    indexes_blocks = False
    frame_axis = 2
    row_arguments = ("hidden_states", "encoder_hidden_states", "encoder_hidden_states_image", "timestep")
    shared_config = ("in_channels", "out_channels", "text_dim", "image_dim")
    fresh = (
        "condition_embedder.time_embedder",
        "condition_embedder.time_proj",
        "scale_shift_table",
        "norm_out",
        "proj_out",
    )

    def latents(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        x = inputs["hidden_states"]
        channels = model.config.out_channels
        return x if x.shape[1] == channels else x[:, :channels]

    def encode(self, pipe: Any, clip: torch.Tensor) -> torch.Tensor:
        return self._normalised(pipe, clip)

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        embedder, timestep = model.condition_embedder, inputs["timestep"]
        # A 2-D timestep (Wan 2.2 TI2V) has one value a token.
        frequencies = embedder.timesteps_proj(timestep.flatten())
        embedding = embedder.time_embedder(frequencies.to(computing_dtype(embedder.time_embedder, inputs)))
        if projected:
            embedding = embedder.time_proj(embedder.act_fn(embedding))
        return embedding.unflatten(0, timestep.shape)

    def guidance(self, pipe: Any, stage: int, arguments: Mapping[str, Any]) -> float:
        # These pipelines combine branches with the scale that they were called with.  One that is set meanwhile only
        # decides whether there is a second branch.
        second = arguments.get("guidance_scale_2", getattr(pipe, "_guidance_scale_2", None))
        scale = second if stage == 1 and second is not None else arguments.get("guidance_scale")
        return float(pipe.guidance_scale if scale is None else scale)
