"""A linear VAE for images: a fixed transform of 2 x 2 pixels behind the interface of ``AutoencoderKL``.

Encoding projects the twelve numbers of 2 x 2 pixels onto their first four principal components: the four channels of
Stable Diffusion's latents, which its pipelines insist on where they inpaint.  Decoding is the linear map, fitted by
least squares, from 3 x 3 latents to the pixels of the middle one; the neighbours say most of what four numbers alone
could not, and there are no seams.  Nothing is random, and nothing is hallucinated by a decoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn

PATCH = 2  # pixels, height and width
_PIXELS = 3 * PATCH**2


class PixelTransformVAE(ModelMixin, ConfigMixin):
    """Four linear channels at half the resolution.

    ``scaling_factor`` has the meaning it has in ``AutoencoderKL``, and the length of ``block_out_channels`` tells a
    pipeline by how much latents are smaller than images; the channels are divided by ``channel_scale`` beforehand.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: tuple[int, ...] = (12, 12),
        scaling_factor: float = 1.0,
        channel_scale: tuple[float, ...] = (1.0,) * 4,
        force_upcast: bool = False,
    ):
        super().__init__()
        self.basis = nn.Parameter(torch.zeros(_PIXELS, latent_channels), requires_grad=False)
        self.offset = nn.Parameter(torch.zeros(_PIXELS), requires_grad=False)
        self.synthesis = nn.Parameter(torch.zeros(9 * latent_channels, _PIXELS), requires_grad=False)

    def _scale(self, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.config.channel_scale, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)

    def _analyse(self, x: torch.Tensor) -> torch.Tensor:
        """Components of images in [-1, 1]: [B, 3, 2 h, 2 w] -> [B, C, h, w]."""
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % PATCH or x.shape[3] % PATCH:
            raise ValueError(f"expected [B, 3, {PATCH} h, {PATCH} w], got {tuple(x.shape)}")
        pixels = F.pixel_unshuffle(x, PATCH).permute(0, 2, 3, 1)
        return ((pixels - self.offset) @ self.basis).permute(0, 3, 1, 2)

    @staticmethod
    def _neighbours(components: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] -> [B, h w, 9 C], the edge repeated outwards."""
        return F.unfold(F.pad(components, (1, 1, 1, 1), mode="replicate"), 3).transpose(1, 2)

    def encode(self, x: torch.Tensor, return_dict: bool = True):
        """Images in [-1, 1], [B, 3, 2 h, 2 w], to a (deterministic) distribution over [B, C, h, w]."""
        posterior = IdentityDistribution((self._analyse(x) / self._scale(x)).contiguous())
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None):
        """Latents [B, C, h, w] to images [B, 3, 2 h, 2 w], clamped to [-1, 1]; ``generator`` is not used."""
        pixels = self._neighbours(z * self._scale(z)) @ self.synthesis + self.offset
        pixels = pixels.transpose(1, 2).unflatten(2, z.shape[2:])
        image = F.pixel_shuffle(pixels, PATCH).clamp(-1, 1)
        return DecoderOutput(sample=image) if return_dict else (image,)

    @classmethod
    @torch.no_grad()
    def fit(cls, images: torch.Tensor) -> PixelTransformVAE:
        """The transform of ``images`` ([B, H, W, 3] in [0, 1]), deterministic up to the last ulp.

        ``channel_scale`` is the square root of each component's standard deviation, half-way between keeping the
        spectrum and whitening it; ``scaling_factor`` makes the mean square of the latents one.
        """
        vae, images = cls(), images.permute(0, 3, 1, 2) * 2 - 1
        pixels = F.pixel_unshuffle(images, PATCH).permute(0, 2, 3, 1).flatten(0, 2).double()
        offset = pixels.mean(dim=0)
        values, vectors = torch.linalg.eigh((pixels - offset).T @ (pixels - offset) / len(pixels))
        channels = vae.config.latent_channels
        values, vectors = values.flip(0)[:channels], vectors.flip(1)[:, :channels]
        vae.basis.copy_(vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign())
        vae.offset.copy_(offset)
        context = vae._neighbours(vae._analyse(images)).flatten(0, 1).double()
        targets = F.pixel_unshuffle(images, PATCH).flatten(2).transpose(1, 2).flatten(0, 1).double() - offset
        vae.synthesis.copy_(torch.linalg.solve(context.T @ context, context.T @ targets))
        deviation = values.sqrt()
        vae.register_to_config(
            channel_scale=[round(v, 6) for v in deviation.sqrt().tolist()],
            scaling_factor=round(float(deviation.mean().rsqrt()), 6),
        )
        return vae

    @torch.no_grad()
    def scaled_latents(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, H, W, 3] in [0, 1] to the latents a U-Net sees, [B, C, h, w]."""
        return self.encode(images.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mode() * self.config.scaling_factor
