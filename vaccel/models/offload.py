"""Offloaded weights that a call needs and the model's own hooks would not bring, since not all of the model is called.

accelerate's hooks bring what is called, block by block or the whole model.  diffusers' group offload has leaders: the
call of a group's first module brings the weights of all of it, and that of its last one takes them away.  Where a view
calls some blocks of a group and not its leaders, others lead for the length of the call; where a module of the root is
called alone, the root's own group is brought for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

#: diffusers' name of the hook that brings a group.
GROUP = "group_offloading"


def group_hook(module: nn.Module) -> Any:
    """The hook by which diffusers offloads the group that a module belongs to; None where there is none."""
    registry = module.__dict__.get("_diffusers_hook")
    return registry.hooks.get(GROUP) if registry is not None else None


@contextlib.contextmanager
def at_root(model: nn.Module) -> Iterator[None]:
    """What lies at the model's root is where the inputs are while the context lasts, as in the model's own call."""
    whole, group = getattr(model, "_hf_hook", None), group_hook(model)
    if whole is not None:
        whole.pre_forward(model)
    if any(kind.__name__ == "FSDPModule" for kind in type(model).__mro__):
        model.unshard()  # on every rank: all of them ask the same; it is the root's, which stays whole till its end
    if group is None:
        yield
        return
    group.pre_forward(model)
    try:
        yield
    finally:
        group.post_forward(model, None)


@contextlib.contextmanager
def led(blocks: Sequence[nn.Module], called: set[int]) -> Iterator[None]:
    """Groups of which only some blocks are called have their leaders among these while the context lasts.

    Args:
        blocks: those of the model, in the order in which they run.
        called: the ids of those that will be called.
    """
    changed: list[tuple[Any, Any, Any]] = []
    for group, members in _groups(blocks):
        present = [block for block in members if id(block) in called]
        if present and len(present) < len(members):
            changed.append((group, group.onload_leader, group.offload_leader))
            group.onload_leader, group.offload_leader = present[0], present[-1]
    try:
        yield
    finally:
        for group, onloads, offloads in changed:
            group.onload_leader, group.offload_leader = onloads, offloads


def _groups(blocks: Sequence[nn.Module]) -> list[tuple[Any, list[nn.Module]]]:
    """Groups of several blocks, with those of each in their order."""
    found: dict[int, tuple[Any, list[nn.Module]]] = {}
    for block in blocks:
        if (hook := group_hook(block)) is not None:
            found.setdefault(id(hook.group), (hook.group, []))[1].append(block)
    return [entry for entry in found.values() if len(entry[1]) > 1]
