"""JoyImage: pictures and those to be edited in one tensor, blocks that carry the text along."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .layout import Layout, Part
from .rescaled import Rescaled
from .wan import Wan


class _Joy(Rescaled):
    """The channels are the third axis; pictures to be edited are denoised along, and put back by the pipelines."""

    blocks = (BlockList("double_blocks", "hidden_encoder"),)
    indexes_blocks = False
    channel_axis = norm_axis = 2
    shared_config = ("in_channels", "out_channels", "text_dim")
    fresh = ("condition_embedder.time_embedder", "condition_embedder.time_proj", "norm_out", "proj_out")

    def layout(self, model: nn.Module) -> Layout | None:
        return self.static(Part(0, "hidden_states"))

    def width(self, model: nn.Module) -> int:
        return model.config.hidden_size

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return Wan.modulation(self, model, inputs, projected)  # embedded in the same way


class JoyImageEdit(_Joy):
    """``JoyImageEditTransformer3DModel``: latents [B, pictures, C, F, H, W]; two calls for guidance."""

    name = "joyimage-edit"
    transformers = ("JoyImageEditTransformer3DModel",)
    batched_guidance = False


class JoyImageEditPlus(_Joy):
    """``JoyImageEditPlusTransformer3DModel``: patches of pictures of any size, [B, patches, C, 1, 2, 2]; one call."""

    name = "joyimage-edit-plus"
    transformers = ("JoyImageEditPlusTransformer3DModel",)
    batched_guidance = True
    spatial = False
