"""SkyReels V2: built like Wan 2.1; with diffusion forcing every latent frame has a timestep of its own."""

from __future__ import annotations

from .wan import Wan


class SkyReelsV2(Wan):
    """``SkyReelsV2Transformer3DModel``: latents [B, C, F, H, W]; the timestep is [B], or [B, F] where it is forced."""

    name = "skyreels-v2"
    transformers = ("SkyReelsV2Transformer3DModel",)
