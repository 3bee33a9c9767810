"""CogView 3 Plus and 4, GLM-Image: blocks that carry the text along, sizes embedded beside the timestep."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .picture import Picture


class CogView(Picture):
    """Latents [B, C, H, W]; the embedding of the timestep has the picture's sizes in it."""

    blocks = (BlockList("transformer_blocks", "hidden_encoder"),)
    indexes_blocks = False
    shared_config = ("in_channels", "out_channels", "text_embed_dim")
    fresh = ("time_condition_embed", "norm_out", "proj_out")
    #: The arguments that say sizes, in the order of the embedder's.
    sizes = ("original_size", "target_size", "crop_coords")

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        sizes = (inputs[name] for name in self.sizes)
        return model.time_condition_embed(inputs["timestep"], *sizes, inputs["hidden_states"].dtype)

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        return None  # sizes have a row a sample


class CogView3Plus(CogView):
    """``CogView3PlusTransformer2DModel``: one batched call for guidance."""

    name = "cogview3-plus"
    transformers = ("CogView3PlusTransformer2DModel",)
    batched_guidance = True


class CogView4(CogView):
    """``CogView4Transformer2DModel``: two calls for guidance; Control appends condition channels."""

    name = "cogview4"
    transformers = ("CogView4Transformer2DModel",)
    batched_guidance = False


class GlmImage(CogView):
    """``GlmImageTransformer2DModel``: two calls for guidance; a language model's tokens are added to the picture's.

    Blocks read keys and values of pictures to be edited from a cache that is looked up by their numbers; it is written
    by calls before the loop.
    """

    name = "glm-image"
    transformers = ("GlmImageTransformer2DModel",)
    indexes_blocks = True
    batched_guidance = False
    sizes = ("target_size", "crop_coords")
