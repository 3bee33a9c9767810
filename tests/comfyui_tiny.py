"""A tiny network in ComfyUI's double, and how it is sampled with."""

from __future__ import annotations

import comfyui_double as comfy
import comfyui_levels as levels
import torch

from vaccel.integrations.comfyui import Choice, journal_of

HALF = Choice("Forecast", "speed", 2.0)
SHAPE = (4, 6, 6)


class Tiny(comfy.Network):
    """A smooth function of latents, level and condition; it writes down what it was called with."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(1)) / 6)
        self.calls: list[dict] = []
        self.fails_at = -1

    def _forward(self, x, timestep, context, control, transformer_options, **kwargs):
        self.calls.append({"uuids": transformer_options["uuids"], "sigma": float(transformer_options["sigmas"][0])})
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        mixed = torch.conv2d(x[:, :4], self.weight, padding=1)
        return (
            torch.tanh(mixed) * 0.5
            + x[:, :4] * 0.3
            + context.mean(1)[:, :, None, None]
            + timestep.view(-1, 1, 1, 1) / 2e3
        )


def model(sampling=None):
    return comfy.ModelPatcher(comfy.BaseModel(Tiny(), sampling or levels.FlowSampling()).eval())


def prompts():
    make = torch.Generator().manual_seed(5)
    return tuple([comfy.condition(cross_attn=torch.randn(1, 3, 4, generator=make))] for _ in range(2))


def noise(batch=1, shape=SHAPE, seed=0):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def run(patcher, sampler="euler", steps=14, cfg=3.0, conds=None, sigmas=None, **given):
    positive, negative = conds or prompts()
    if sigmas is None:
        sigmas = levels.simple_sigmas(patcher.model.model_sampling, steps)
    given.setdefault("noise", noise())
    return comfy.sample(patcher, given.pop("noise"), positive, negative, cfg, comfy.ksampler(sampler), sigmas, **given)


def last(patcher):
    return journal_of(patcher).last


def forwards(patcher):
    return sum(len(call["uuids"]) for call in patcher.model.diffusion_model.calls)
