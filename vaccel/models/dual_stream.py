"""What families share that are built like Flux: packed latents, blocks for both streams, then blocks that join them."""

from __future__ import annotations

from torch import nn

from .embedded import Embedded
from .family import BlockList, Inputs
from .layout import Layout, Part
from .packed import Packed


class DualStream(Embedded, Packed):
    """Latents packed two by two, [B, tokens, C]; subclasses say what their blocks give."""

    blocks = (
        BlockList("transformer_blocks", "encoder_hidden"),
        BlockList("single_transformer_blocks", "encoder_hidden"),
    )
    batched_guidance = False
    shared_config = ("in_channels", "joint_attention_dim", "axes_dims_rope")

    def layout(self, model: nn.Module) -> Layout | None:
        return self.static(Part(0, "hidden_states", axis=2, size=model.out_channels))

    def latents_shape(self, model: nn.Module, rows: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        return rows, frames * (height // 2) * (width // 2), model.out_channels

    def hidden_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...]:
        return *inputs["hidden_states"].shape[:2], self.width(model)


#: The second list where its blocks are given text and latents as one sequence.
SINGLE = BlockList("single_transformer_blocks", joined="encoder")
