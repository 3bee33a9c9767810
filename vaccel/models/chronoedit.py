"""ChronoEdit: built like Wan's image to video, with other positions."""

from __future__ import annotations

from .wan import Wan


class ChronoEdit(Wan):
    """``ChronoEditTransformer3DModel``: latents [B, C, F, H, W], conditions behind them in the channels.

    The pipeline may drop the frames in between on the way: such calls are of another kind then.
    """

    name = "chronoedit"
    transformers = ("ChronoEditTransformer3DModel",)
