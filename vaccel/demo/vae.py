"""A linear VAE: a fixed orthonormal patch transform behind the interface of ``AutoencoderKLWan``.

Fidelity is judged on pixels.  With an orthonormal transform a distance in latents is a distance in pixels, nothing is
hallucinated by a decoder, and nothing has to be trained: the basis is the first principal components of the clips'
own space-time patches (4 frames x 8 x 8 pixels x RGB).
"""

from __future__ import annotations

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn


class PatchTransformVAE(ModelMixin, ConfigMixin):
    """Orthonormal projection of space-time patches onto ``z_dim`` components.

    Like Wan's VAE it is causal: the first latent frame stands for the first video frame alone (repeated to fill its
    patch), every other one for ``scale_factor_temporal`` frames, so 1 + 4 n frames give 1 + n latent frames.
    ``latents_mean`` and ``latents_std`` have the meaning they have in ``AutoencoderKLWan``.
    """

    @register_to_config
    def __init__(
        self,
        z_dim: int = 64,
        scale_factor_temporal: int = 4,
        scale_factor_spatial: int = 8,
        latents_mean: tuple[float, ...] = (0.0,) * 64,
        latents_std: tuple[float, ...] = (1.0,) * 64,
    ):
        super().__init__()
        size = scale_factor_temporal * scale_factor_spatial**2 * 3
        self.basis = nn.Parameter(torch.zeros(size, z_dim), requires_grad=False)
        self.offset = nn.Parameter(torch.zeros(size), requires_grad=False)

    def _patches(self, video: torch.Tensor) -> torch.Tensor:
        """[B, 3, 1 + t n, s h, s w] -> [B, 1 + n, h, w, t s s 3]."""
        t, s = self.config.scale_factor_temporal, self.config.scale_factor_spatial
        batch, channels, frames, height, width = video.shape
        if channels != 3 or (frames - 1) % t or height % s or width % s:
            raise ValueError(f"expected [B, 3, 1 + {t} n, {s} h, {s} w], got {tuple(video.shape)}")
        video = torch.cat([video[:, :, :1].expand(-1, -1, t - 1, -1, -1), video], dim=2)
        video = video.view(batch, 3, -1, t, height // s, s, width // s, s)
        return video.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)

    def encode(self, x: torch.Tensor, return_dict: bool = True):
        """Video in [-1, 1], [B, 3, F, H, W], to a (deterministic) distribution over [B, z_dim, f, h, w]."""
        latents = ((self._patches(x) - self.offset) @ self.basis).permute(0, 4, 1, 2, 3).contiguous()
        posterior = IdentityDistribution(latents)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: torch.Tensor, return_dict: bool = True):
        """Latents [B, z_dim, f, h, w] to video [B, 3, F, H, W], clamped to [-1, 1]."""
        t, s = self.config.scale_factor_temporal, self.config.scale_factor_spatial
        batch, _, frames, height, width = z.shape
        patches = z.permute(0, 2, 3, 4, 1) @ self.basis.T + self.offset
        video = patches.view(batch, frames, height, width, t, s, s, 3).permute(0, 7, 1, 4, 2, 5, 3, 6)
        video = video.reshape(batch, 3, frames * t, height * s, width * s)
        video = torch.cat([video[:, :, :t].mean(dim=2, keepdim=True), video[:, :, t:]], dim=2).clamp(-1, 1)
        return DecoderOutput(sample=video) if return_dict else (video,)

    @classmethod
    @torch.no_grad()
    def fit(cls, clips: torch.Tensor, z_dim: int = 64) -> PatchTransformVAE:
        """The principal components of ``clips`` ([B, F, H, W, 3] in [0, 1]), deterministic up to the last ulp.

        ``latents_std`` is the square root of each component's standard deviation: half-way between keeping the
        spectrum (the first component would drown the rest) and whitening it (invisible detail would weigh as much as
        colour).
        """
        vae = cls(z_dim=z_dim)
        patches = vae._patches(clips.permute(0, 4, 1, 2, 3) * 2 - 1).flatten(0, 3).double()
        offset = patches.mean(dim=0)
        values, vectors = torch.linalg.eigh((patches - offset).T @ (patches - offset) / len(patches))
        vectors = vectors.flip(1)[:, :z_dim]
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
        std = values.flip(0)[:z_dim].clamp_min(0).sqrt().sqrt()
        vae.register_to_config(latents_mean=[0.0] * z_dim, latents_std=[round(v, 6) for v in std.tolist()])
        vae.basis.copy_(vectors)
        vae.offset.copy_(offset)
        return vae

    @torch.no_grad()
    def normalised_latents(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips [B, F, H, W, 3] in [0, 1] to the latents a transformer sees, [B, z_dim, f, h, w]."""
        latents = self.encode(clips.permute(0, 4, 1, 2, 3) * 2 - 1).latent_dist.mode()
        return latents / torch.tensor(self.config.latents_std).view(1, -1, 1, 1, 1)
