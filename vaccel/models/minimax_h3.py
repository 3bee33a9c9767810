"""MiniMax-H3: video, sound and text are rows of one sequence."""

from __future__ import annotations

from torch import nn

from .family import BlockList, Family, Inputs


class MiniMaxH3(Family):
    """``MiniMaxH3Transformer3DModel``: tokens of video and of sound, [B, tokens, C] each; both are predicted.

    Where they lie in the sequence, and which of them are conditions, comes with a call.
    """

    name = "minimax-h3"
    transformers = ("MiniMaxH3Transformer3DModel",)
    blocks = (BlockList("transformer_blocks", joined="encoder"),)
    indexes_blocks = False
    batched_guidance = False
    spatial = False
    channel_axis = -1
    shared_config = ("in_channels", "audio_in_channels", "patch_size", "text_dim")

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        if "position_ids" not in inputs:
            return None
        return len(inputs["hidden_states"]), len(inputs["position_ids"]), model.config.hidden_size
