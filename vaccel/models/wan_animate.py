"""Wan Animate: Wan with a pose, and with a face that is looked at between blocks."""

from __future__ import annotations

from .wan import Wan


class WanAnimate(Wan):
    """``WanAnimateTransformer3DModel``: latents [B, C, F, H, W], conditions behind them in the channels.

    Face adapters run behind every few blocks.  They and the encoder of motion are computed at every call, in vain where
    the residual stands in for the blocks: it holds what they add, but for one behind the last block.
    """

    name = "wan-animate"
    transformers = ("WanAnimateTransformer3DModel",)
    indexes_blocks = True
    between = True
    row_arguments = (*Wan.row_arguments, "pose_hidden_states", "face_pixel_values")
