"""AuraFlow: blocks for both streams, then blocks that join them; one batched call for guidance."""

from __future__ import annotations

import torch
from torch import nn

from .dual_stream import SINGLE
from .embedded import Embedded
from .family import BlockList, Inputs
from .picture import Picture


class AuraFlow(Embedded, Picture):
    """``AuraFlowTransformer2DModel``: latents [B, C, H, W]; learnt tokens go before the text."""

    name = "auraflow"
    transformers = ("AuraFlowTransformer2DModel",)
    blocks = (BlockList("joint_transformer_blocks", "encoder_hidden"), SINGLE)
    batched_guidance = True
    shared_config = ("in_channels", "out_channels", "joint_attention_dim")

    def embedding(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        return model.time_step_proj(model.time_step_embed(inputs["timestep"]).to(inputs["hidden_states"].dtype))
