"""What families share that are built like Flux: packed latents, blocks for both streams, then blocks that join them."""

from __future__ import annotations

from torch import nn

from .embedded import Embedded
from .family import BlockList
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


#: The second list where its blocks are given text and latents as one sequence.
SINGLE = BlockList("single_transformer_blocks", joined="encoder")
