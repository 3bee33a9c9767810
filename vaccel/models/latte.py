"""Latte: blocks in space and in time take turns, and each sees the other's axis as rows."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .video import Video, adaln_embedding


class Latte(Video):
    """``LatteTransformer3DModel``: latents [B, C, F, H, W]; a learned variance follows the prediction.

    Hidden states enter the first block as [B * F, tokens, width] and leave the last one as [B * tokens, F, width].
    """

    name = "latte"
    transformers = ("LatteTransformer3DModel",)
    blocks = (BlockList("transformer_blocks"), BlockList("temporal_transformer_blocks"))
    interleaved = True
    batched_guidance = True
    shared_config = ("in_channels", "out_channels", "caption_channels")
    fresh = ("adaln_single", "scale_shift_table", "proj_out")

    def leaving(self, model: nn.Module, hidden: torch.Tensor, arriving: torch.Tensor, joined: str) -> torch.Tensor:
        return _turned(hidden, arriving.shape[1])

    def entered(self, model: nn.Module, hidden: torch.Tensor, like: torch.Tensor, joined: str) -> torch.Tensor:
        return _turned(hidden, like.shape[1])

    def skipped(self, model: nn.Module, inputs: Inputs) -> tuple[tuple[int, ...], Inputs]:
        if inputs.get("enable_temporal_attentions", True):
            return (), inputs
        if inputs["hidden_states"].shape[2] > 1:  # positions in time would be added to them
            raise ValueError(
                "without its temporal attentions Latte's blocks are others: use a method that leaves them alone, such "
                "as EasyCache"
            )
        every = 2 * len(model.transformer_blocks)
        return tuple(range(1, every, 2)), {**inputs, "enable_temporal_attentions": True}

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return adaln_embedding(model.adaln_single, inputs, projected)


def _turned(hidden: torch.Tensor, rows: int) -> torch.Tensor:
    """[B * rows, n, width] as [B * n, rows, width]."""
    return hidden.unflatten(0, (-1, rows)).transpose(1, 2).flatten(0, 1)
