"""Which ranks share a call of a denoiser: its forward has collectives, and one that leaves it out leaves them waiting.

Ranks that hold whole copies and make a video each share nothing and are never synchronised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from .agreement import Agreement
from .exchange import exchange_of


def agreement_of(models: Iterable[Any], group: Any = None) -> Agreement | None:
    """What this rank agrees with others by, for one call of a pipeline; None where it decides alone.

    Args:
        models: the denoisers; what is no module shows nothing.
        group: the process group that the user says shares their calls; by default what the models themselves show.

    Raises ``ValueError`` where models are shared with different ranks, or this rank is none of the group.
    """
    if not _distributed():
        if group is not None:
            raise ValueError(
                "process_group is given and torch.distributed is not initialised: init_process_group first"
            )
        return None
    if group is not None:
        ranks = _of_group(group)
    else:
        found = {ranks for model in models if isinstance(model, nn.Module) and len(ranks := shared_with(model)) > 1}
        if len(found) > 1:
            said = " and ".join(map(str, sorted(found)))
            raise ValueError(f"the models are shared by different ranks, {said}: say by which with process_group=...")
        ranks = found.pop() if found else ()
    if len(ranks) < 2:
        return None
    return Agreement(exchange_of(ranks))


def _distributed() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _of_group(group: Any) -> tuple[int, ...]:
    try:
        ranks = tuple(torch.distributed.get_process_group_ranks(group))
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError):
        ranks = ()
    if torch.distributed.get_rank() not in ranks:
        raise ValueError(f"process_group must be a process group that this rank is of, got {group!r}")
    return tuple(sorted(ranks))


def shared_with(model: nn.Module) -> tuple[int, ...]:
    """The ranks that take part in a forward of a model, this one among them; () where it is whole here.

    Seen by diffusers' parallel configuration, and by parameters that are sharded (tensor parallelism, FSDP2).
    """
    together: set[int] = set()
    config = model.__dict__.get("_parallel_config")
    context = getattr(config, "context_parallel_config", None)
    tensor = getattr(config, "tensor_parallel_config", None)
    if context is not None:
        together |= set(_of_group(context._flattened_mesh.get_group()))
    if tensor is not None:
        together |= set(_of_group(tensor._mesh.get_group()))
    together |= _of_shards(model)
    return tuple(sorted(together)) if len(together) > 1 else ()


def _of_shards(model: nn.Module) -> set[int]:
    """The ranks that hold the other shards of this one's parameters."""
    found: set[int] = set()
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for parameter in model.parameters():
        mesh = getattr(parameter, "device_mesh", None)  # of a DTensor
        if mesh is None:
            continue
        split = tuple(dim for dim, placed in enumerate(parameter.placements) if not placed.is_replicate())
        if split and (id(mesh), split) not in seen:
            seen.add((id(mesh), split))
            found |= _along(mesh, split)
    return found


def _along(mesh: Any, dims: Sequence[int]) -> set[int]:
    """The ranks of a mesh that differ from this one in the coordinates ``dims`` alone."""
    place = mesh.get_coordinate()
    if place is None:
        return set()
    index = tuple(slice(None) if dim in dims else at for dim, at in enumerate(place))
    return set(mesh.mesh[index].flatten().tolist())
