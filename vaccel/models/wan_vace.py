"""Wan VACE: Wan with blocks beside it that make hints of a control video."""

from __future__ import annotations

from .wan import Wan


class WanVACE(Wan):
    """``WanVACETransformer3DModel``: latents [B, C, F, H, W]; hints are added behind some of the blocks.

    The control blocks read nothing but what enters the first block, and are computed at every call, in vain where the
    residual stands in for the blocks: it holds every hint but one behind the last block.
    """

    name = "wan-vace"
    transformers = ("WanVACETransformer3DModel",)
    indexes_blocks = True
    between = True
    row_arguments = (*Wan.row_arguments, "control_hidden_states")
    shared_config = (*Wan.shared_config, "vace_in_channels")
