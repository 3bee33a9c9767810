"""HunyuanImage and its refiner: two lists of blocks that carry text and picture apart."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .picture import Picture


class HunyuanImage(Picture):
    """``HunyuanImageTransformer2DModel``: latents [B, C, H, W]; the refiner's [B, C, F, H, W], conditions behind them.

    Guidance is an embedded number in distilled models, else calls that a guider asks for.  The text's own refiner is
    computed where the blocks are skipped, too.
    """

    name = "hunyuan-image"
    transformers = ("HunyuanImageTransformer2DModel",)
    blocks = (
        BlockList("transformer_blocks", "hidden_encoder"),
        BlockList("single_transformer_blocks", "hidden_encoder"),
    )
    indexes_blocks = False
    batched_guidance = False
    converts_timesteps = True
    shared_config = ("in_channels", "out_channels", "text_embed_dim", "text_embed_2_dim", "patch_size", "use_meanflow")
    fresh = ("time_guidance_embed", "norm_out", "proj_out")

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        others = {name: inputs.get(name) for name in ("guidance", "timestep_r")}
        return model.time_guidance_embed(inputs["timestep"], **others)

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        if inputs.get("guidance") is not None or inputs.get("timestep_r") is not None:
            return None
        # The pipelines round them to the latents' dtype.
        return super().modulations(model, inputs, timesteps.to(inputs["hidden_states"].dtype), projected)
