"""torch.compile by the user: regional and full, in place and by the forward.

With the backend "eager" the compiler's front end does all of its work, guards and graph breaks, and the bits are the
model's own: another compiler than the user's, or the graph of another view, shows as a difference.
"""

from __future__ import annotations

from typing import Any

import torch

from .base import Setting
from .lora import add
from .offload import denoiser

#: One method that calls the plain forward alone, and one with forwards of its own: the compiler takes seconds for each.
SOME = ("outputs", "blocks")


def reset() -> None:
    torch._dynamo.reset()


def regional(pipe: Any) -> None:
    reset()
    denoiser(pipe).compile_repeated_blocks(fullgraph=True, backend="eager")


def in_place(pipe: Any) -> None:
    reset()
    denoiser(pipe).compile(backend="eager")


def by_forward(pipe: Any) -> None:
    reset()
    denoiser(pipe).forward = torch.compile(denoiser(pipe).forward, backend="eager")


def wrapped(pipe: Any) -> None:
    reset()
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    setattr(pipe, name, torch.compile(denoiser(pipe), backend="eager"))


def with_breaks(pipe: Any) -> None:
    """A hook of the user's whose Python the compiler cannot follow: fullgraph=False is what makes it work."""
    reset()
    model = denoiser(pipe)
    block = next(m for m in model.modules() if type(m).__name__.endswith("Block"))
    block.register_forward_pre_hook(_unfollowed)
    model.compile(backend="eager")


@torch._dynamo.disable
def _unfollowed(module: Any, args: Any) -> None:
    return None


def regional_lora(pipe: Any) -> None:
    add(pipe)
    regional(pipe)


COMPILED = {"group": "torch.compile", "neutral": True, "methods": SOME, "orders": ("before", "between")}
Setting("regional", apply=regional, pipes=("wan",), recipe="transformer.compile_repeated_blocks()", **COMPILED)
Setting("regional, a LoRA", apply=regional_lora, pipes=("wan",), recipe="the LoRA first",
        **{**COMPILED, "neutral": False})  # fmt: skip
Setting("full, in place", apply=in_place, pipes=("wan", "sd"), recipe="transformer.compile()", **COMPILED)
Setting("full, with a graph break", apply=with_breaks, pipes=("wan",), recipe="transformer.compile(fullgraph=False)",
        **COMPILED)  # fmt: skip
Setting("full, the forward", apply=by_forward, pipes=("wan",), recipe="transformer.forward = torch.compile(...)",
        **COMPILED)  # fmt: skip
Setting("full, wrapped", apply=wrapped, pipes=("wan", "sd"), recipe="pipe.unet = torch.compile(pipe.unet)",
        refuses={("*", "*"): "compile=True"}, **{**COMPILED, "orders": ("before", "after", "between")})  # fmt: skip
