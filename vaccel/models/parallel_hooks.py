"""What diffusers' context parallelism has put on a model's blocks, where others stand in their places.

It splits the tokens over the ranks in a hook on the root of some models and on the first block of others (Wan,
Qwen-Image), and gathers them behind the last layer.  Between the two a rank has its own part alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

#: How diffusers names the hooks that split a module's inputs.
SPLITS = "cp_input---"

Split = Callable[[tuple, dict], tuple[tuple, dict]]


def splitting(block: nn.Module) -> Split | None:
    """What gives this rank's part of the arguments of ``block``; None where they are not split here."""
    registry = block.__dict__.get("_diffusers_hook")
    found = [hook for name, hook in registry.hooks.items() if name.startswith(SPLITS)] if registry is not None else []
    if not found:
        return None

    def split(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        for hook in found:
            args, kwargs = hook.pre_forward(block, *args, **dict(kwargs))
        return args, kwargs

    return split
