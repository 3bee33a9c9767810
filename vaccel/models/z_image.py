"""Z-Image: lists of samples, joined with their text after both are refined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .family import BlockList, Family, Inputs


class ZImage(Family):
    """``ZImageTransformer2DModel``: a list of latents [C, 1, H, W], or of lists that end in them (Omni).

    Guidance, p + w (p - n), comes as one call, but the conditional rows first, and their text is padded to the longest
    of all rows: no row can be computed without the others.  So a call counts as one branch.
    """

    name = "z-image"
    transformers = ("ZImageTransformer2DModel",)
    blocks = (BlockList("layers", joined="hidden"),)
    between = True  # where a ControlNet adds its hints
    condition = "cap_feats"
    batched_guidance = False
    converts_timesteps = True
    shared_config = ("in_channels", "cap_feat_dim", "all_patch_size", "all_f_patch_size")

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        return (1000 - t) / 1000

    def guidance(self, pipe: Any, stage: int, arguments: Mapping[str, Any]) -> float:
        return super().guidance(pipe, stage, arguments) + 1

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        if self.condition not in inputs:
            return None
        pictures = [sample[:-1] if isinstance(sample, list) else [] for sample in inputs["x"]]
        beside = (inputs[self.condition], inputs.get("siglip_feats") or (), pictures)
        # What the length of the joined sequence depends on, other pictures of a sample among it.
        return len(inputs["x"]), *(max(map(_elements, samples), default=0) for samples in beside), model.config.dim

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        if projected:
            return super().modulation(model, inputs, projected)
        return model.t_embedder(inputs["t"] * model.t_scale)

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        return self.modulation(model, {**inputs, "t": self.timestep(timesteps)}, projected)


def _elements(given: Any) -> int:
    """How many numbers there are in a tensor, or in a list of tensors and Nones."""
    if isinstance(given, torch.Tensor):
        return given.numel()
    return sum(map(_elements, given)) if given is not None else 0
