"""What ComfyUI's models predict and at which noise levels: the part of its double that knows no model.

Read at the commit that ``comfyui_double`` names.
"""

from __future__ import annotations

import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn


def k_diffusion_sampling() -> Any:
    """k-diffusion's samplers alone: the package around them brings CLIP, wandb and torchvision for other things."""
    if "k_diffusion.sampling" not in sys.modules:
        package = types.ModuleType("k_diffusion")
        package.__path__ = [str(Path(find_spec("k_diffusion").submodule_search_locations[0]))]
        utils = types.ModuleType("k_diffusion.utils")
        utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
        package.utils = utils
        sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    import k_diffusion.sampling

    return k_diffusion.sampling


def _wide(sigma: torch.Tensor, ndim: int) -> torch.Tensor:
    return sigma.view(()) if sigma.nelement() == 1 else sigma.view(-1, *[1] * (ndim - 1))


class Eps:
    """Predicted noise, of latents x_0 + sigma eps that are scaled to unit variance."""

    sigma_data = 1.0

    def calculate_input(self, sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x / (_wide(sigma, x.ndim) ** 2 + self.sigma_data**2) ** 0.5

    def calculate_denoised(self, sigma: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x - output * _wide(sigma, output.ndim)

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        sigma = _wide(sigma, noise.ndim)
        noise = noise * (torch.sqrt(1.0 + sigma**2) if max_denoise else sigma)
        noise += latent_image
        return noise

    def inverse_noise_scaling(self, sigma: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        return latent


class V(Eps):
    """v, as Stable Diffusion 2 has it."""

    sign = -1.0

    def calculate_denoised(self, sigma: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        sigma, data = _wide(sigma, output.ndim), self.sigma_data
        total = sigma**2 + data**2
        return x * data**2 / total + self.sign * output * sigma * data / total**0.5


class Edm(V):
    """EDM's F."""

    sign = 1.0


class Const(Eps):
    """A flow's velocity, of latents (1 - sigma) x_0 + sigma eps."""

    def calculate_input(self, sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        sigma = _wide(sigma, noise.ndim)
        return sigma * noise + (1.0 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        return latent / (1.0 - _wide(sigma, latent.ndim))


class Levels(nn.Module):
    """A table of noise levels, ascending."""

    sigmas: torch.Tensor

    @property
    def sigma_max(self) -> torch.Tensor:
        return self.sigmas[-1]

    @property
    def sigma_min(self) -> torch.Tensor:
        return self.sigmas[0]


class Discrete(Levels):
    """The thousand levels of Stable Diffusion's training."""

    def __init__(self, start: float = 0.00085, end: float = 0.012):
        super().__init__()
        alphas = (1 - torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
        self.register_buffer("sigmas", ((1 - alphas) / alphas).sqrt().float())

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        distance = sigma.log() - self.sigmas.log()[:, None]
        return distance.abs().argmin(0).view(sigma.shape)

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        t = timestep.float().clamp(0, 999)
        low, high, share = t.floor().long(), t.ceil().long(), t.frac()
        logs = self.sigmas.log()
        return ((1 - share) * logs[low] + share * logs[high]).exp()

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0:
            return 999999999.9
        return 0.0 if percent >= 1 else float(self.sigma(torch.tensor((1 - percent) * 999.0)))


class DiscreteFlow(Levels):
    """The levels of a flow with a shift."""

    def __init__(self, shift: float = 3.0, multiplier: float = 1000.0):
        super().__init__()
        self.shift, self.multiplier = shift, multiplier
        self.register_buffer("sigmas", self._shifted(torch.arange(1, 1001) / 1000))

    def _shifted(self, t: Any) -> Any:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma * self.multiplier

    def percent_to_sigma(self, percent: float) -> float:
        return 1.0 if percent <= 0 else 0.0 if percent >= 1 else self._shifted(1.0 - percent)


class EpsSampling(Discrete, Eps):
    pass


class VSampling(Discrete, V):
    pass


class EdmSampling(Discrete, Edm):
    pass


class FlowSampling(DiscreteFlow, Const):
    pass


def simple_sigmas(sampling: Any, steps: int) -> torch.Tensor:
    """ComfyUI's "simple": every so manieth of the training's levels, then 0."""
    return torch.tensor(
        [*(float(sampling.sigmas[-(1 + int(i * len(sampling.sigmas) / steps))]) for i in range(steps)), 0]
    )


def karras_sigmas(sampling: Any, steps: int) -> torch.Tensor:
    return k_diffusion_sampling().get_sigmas_karras(steps, float(sampling.sigma_min), float(sampling.sigma_max))
