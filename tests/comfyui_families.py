"""The trained families that ship with the package as models of ComfyUI's double."""

from __future__ import annotations

import functools
from typing import Any

import comfyui_double as comfy
import comfyui_levels as levels
import torch

from vaccel.demo import family, glyphs, image_family, shapes


class WanNetwork(comfy.Network):
    """The moving shapes' transformer."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model, self.forwards = model, 0

    def _forward(self, x, timestep, context, control, transformer_options, **kwargs):
        self.forwards += len(transformer_options["uuids"])
        return self.model(hidden_states=x, timestep=timestep, encoder_hidden_states=context, return_dict=False)[0]


class UNetwork(WanNetwork):
    """The glyphs' U-Net."""

    def _forward(self, x, timestep, context, control, transformer_options, **kwargs):
        self.forwards += len(transformer_options["uuids"])
        return self.model(x, timestep, encoder_hidden_states=context, return_dict=False)[0]


class ComfyFamily:
    """A family, its captions as conditions, and its clips or pictures as pixels."""

    cfg = 4.0

    def __init__(self, name: str):
        self.name = name
        if name == "shapes":
            self.pipe = family.load().pipe
            self.network, sampling = WanNetwork(self.pipe.transformer), levels.FlowSampling(3.0)
            self.captions = shapes.held_out_captions(6)
        else:
            self.pipe = image_family.load().pipe
            self.network, sampling = UNetwork(self.pipe.unet), levels.EpsSampling()
            self.captions = glyphs.held_out_captions(6)
        self.patcher = comfy.ModelPatcher(comfy.BaseModel(self.network, sampling).eval())

    @property
    def sampling(self) -> Any:
        return self.patcher.model.model_sampling

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        if self.name == "glyphs":
            return (self.pipe.unet.config.in_channels, *(self.pipe.unet.config.sample_size,) * 2)
        vae = self.pipe.vae
        frames = (shapes.NUM_FRAMES - 1) // self.pipe.vae_scale_factor_temporal + 1
        scale = self.pipe.vae_scale_factor_spatial
        return (vae.config.z_dim, frames, shapes.HEIGHT // scale, shapes.WIDTH // scale)

    @torch.no_grad()
    def conditions(self, caption: str) -> tuple[list[dict], list[dict]]:
        """(positive, negative)."""
        if self.name == "shapes":
            pos, neg = self.pipe.encode_prompt(caption, "", max_sequence_length=family.MAX_TOKENS)
        else:
            pos, neg = self.pipe.encode_prompt(caption, torch.device("cpu"), 1, True, "")
        return [comfy.condition(cross_attn=pos)], [comfy.condition(cross_attn=neg)]

    def noise(self, seed: int, batch: int = 1) -> torch.Tensor:
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """[0, 1]."""
        vae, config = self.pipe.vae, self.pipe.vae.config
        if self.name == "shapes":
            wide = (1, -1, 1, 1, 1)
            mean, deviation = (torch.tensor(v).view(wide) for v in (config.latents_mean, config.latents_std))
            latents = latents * deviation + mean
        else:
            latents = latents / config.scaling_factor
        return (vae.decode(latents, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    def sample(
        self, patcher: Any, caption: str, sampler: str, sigmas: torch.Tensor, *, seed: int = 0,
        cfg: float | None = None, **given: Any,
    ) -> torch.Tensor:  # fmt: skip
        """Finished latents."""
        positive, negative = self.conditions(caption)
        noise = given.pop("noise", None)
        noise = self.noise(seed) if noise is None else noise
        cfg = self.cfg if cfg is None else cfg
        return comfy.sample(
            patcher, noise, positive, negative, cfg, comfy.ksampler(sampler), sigmas, seed=seed, **given
        )

    def psnr(self, made: torch.Tensor, full: torch.Tensor) -> float:
        """Of the decoded pixels, in dB."""
        error = float((self.pixels(made).double() - self.pixels(full).double()).square().mean())
        return -10 * torch.log10(torch.tensor(max(error, 1e-12))).item()


@functools.lru_cache(maxsize=2)
def load(name: str) -> ComfyFamily:
    return ComfyFamily(name)
