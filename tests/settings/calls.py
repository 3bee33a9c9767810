"""What a call brings: callbacks that change latents, prompts or guidance; and what is made of a pipeline."""

from __future__ import annotations

import copy
from typing import Any

import tiny
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    WanVideoToVideoPipeline,
)

from .base import Setting
from .offload import denoiser


def ending(function: Any, *names: str) -> Any:
    """The arguments that have ``function`` called after every step."""

    def call(name: str) -> dict[str, Any]:
        wanted = [n for n in ("latents", *names) if n != "negative_prompt_embeds" or name != "flux"]
        return {"callback_on_step_end": function, "callback_on_step_end_tensor_inputs": wanted}

    return call


def louder(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"latents": kwargs["latents"] * 1.05} if i == 1 else {}


def in_place(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    if i == 2:
        kwargs["latents"].mul_(0.9)
    return kwargs


def prompt(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": kwargs["prompt_embeds"].flip(1)} if i == 2 else {}


def less_guidance(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    if i == 2:
        pipe._guidance_scale = 2.0
    return kwargs


def interrupting(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    if i == 3:
        pipe._interrupt = True
    return kwargs


def calling(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The user's own call of the denoiser, as a preview makes."""
    if i == 2 and hasattr(pipe, "transformer"):
        x = kwargs["latents"]
        with torch.no_grad():
            pipe.transformer(hidden_states=x * 0.5, timestep=torch.tensor([5]), return_dict=False,
                             encoder_hidden_states=torch.zeros(1, 8, 32))  # fmt: skip
    return kwargs


#: An interrupted run has made fewer steps than a method that looks ahead was told of.
PLAIN = ("everything", "outputs", "EasyCache")
CALLS = {"group": "Callbacks", "orders": ("before", "between")}
Setting("latents changed", call=ending(louder), recipe="callback_on_step_end", fast=True, **CALLS)
Setting("latents changed in place", call=ending(in_place), recipe="callback_on_step_end", **CALLS)
Setting("prompt changed", call=ending(prompt, "prompt_embeds"), recipe="callback_on_step_end", **CALLS)
Setting("guidance changed", call=ending(less_guidance), recipe="callback_on_step_end", pipes=("wan", "sd"), **CALLS)
Setting("interrupted", call=ending(interrupting), recipe="pipe._interrupt = True", methods=PLAIN, **CALLS)
Setting("denoiser called by the callback", call=ending(calling), recipe="callback_on_step_end", pipes=("wan",),
        methods=("everything",), neutral=True, **CALLS)  # fmt: skip


def another_scheduler(pipe: Any) -> None:
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)


def another_transformer(pipe: Any) -> None:
    """Of another width and depth."""
    pipe.transformer = tiny.wan_transformer(12, layers=2, heads=3)


def from_pipe(pipe: Any) -> None:
    """Another pipeline with the same components, which is run; this one goes on as it was."""
    if hasattr(pipe, "unet"):
        StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    else:
        other = WanVideoToVideoPipeline.from_pipe(pipe)
        assert type(other) is WanVideoToVideoPipeline


def copied(pipe: Any) -> None:
    """Copies are made of it and changed; this one goes on as it was."""
    shallow, deep = copy.copy(pipe), copy.deepcopy(pipe)
    shallow.scheduler = copy.deepcopy(pipe.scheduler)
    model = denoiser(deep)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


def weights_written(pipe: Any) -> None:
    model = denoiser(pipe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


def state_loaded(pipe: Any) -> None:
    model = denoiser(pipe)
    generator = torch.Generator().manual_seed(8)
    state = {k: v + 0.01 * torch.randn(v.shape, generator=generator) for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def hooked(pipe: Any) -> None:
    """The user's own hook on the denoiser, which changes what it answers."""
    model = denoiser(pipe)
    model.register_forward_hook(lambda module, args, answer: tuple(a * 1.1 for a in answer))


OTHERS = {"group": "Copies, other pipelines, weights"}
Setting(
    "another scheduler", apply=another_scheduler, pipes=("wan",), wide=True, recipe="pipe.scheduler = ...", **OTHERS
)
Setting("another transformer", apply=another_transformer, pipes=("wan",), recipe="pipe.transformer = ...", **OTHERS)
Setting("from_pipe", apply=from_pipe, pipes=("wan", "sd"), wide=True, recipe="OtherPipeline.from_pipe(pipe)",
        **OTHERS)  # fmt: skip
Setting("copies", apply=copied, neutral=True, recipe="copy.copy(pipe), copy.deepcopy(pipe)", pipes=("wan", "flux"),
        **OTHERS)  # fmt: skip
Setting("weights written", apply=weights_written, pipes=("wan", "sd"), recipe="parameter.mul_(...)", **OTHERS)
Setting("a checkpoint loaded", apply=state_loaded, recipe="transformer.load_state_dict(..., assign=True)",
        pipes=("wan", "flux"), **OTHERS)  # fmt: skip
Setting("a forward hook", apply=hooked, recipe="transformer.register_forward_hook(...)", **OTHERS)
