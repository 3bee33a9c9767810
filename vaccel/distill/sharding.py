"""Training whose networks lie in pieces over the processes (FSDP2), each whole for a block at a time.

Accelerate launches the processes and says that it is wanted (``accelerate launch --use_fsdp --fsdp_version 2``); which
modules are gathered together is the family's to say, and the frozen networks are sharded too, which accelerate's
``prepare`` has no way to do: it takes one model, with its optimiser.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..models import Family


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether a training with this accelerator shards its networks.

    Raises ``ValueError`` for FSDP's version 1, and for settings of it that are not followed.
    """
    plugin = _plugin(accelerator)
    if plugin is None:
        return False
    version = getattr(plugin, "fsdp_version", 1)  # an old accelerate has one version and no name for it
    if version != 2:
        raise ValueError(f"FSDP {version} is not supported: accelerate launch --use_fsdp --fsdp_version 2")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("FSDP's offload of weights to the host is not supported: leave --fsdp_offload_params out")
    if plugin.activation_checkpointing:
        raise ValueError("FSDP's activation checkpointing is not supported: --checkpointing is vaccel's own")
    if getattr(accelerator, "parallelism_config", None) is not None:
        raise ValueError("FSDP over all processes alone is supported, without accelerate's parallelism_config")
    return True


def _plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin | None:
    """The settings of accelerate's FSDP; accelerate itself passes them over where the processes are on CPUs."""
    if accelerator.distributed_type == DistributedType.FSDP:
        return accelerator.state.fsdp_plugin
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return FullyShardedDataParallelPlugin() if asked and _on_cpus(accelerator) else None


def _on_cpus(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.MULTI_CPU


def mesh_of(accelerator: Accelerator) -> DeviceMesh:
    """All processes in a row."""
    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def shard(network: nn.Module, family: Family, mesh: DeviceMesh, *, keep_outer: bool = False) -> None:
    """Shards a network in place: every block, and what is outside of them, is gathered when its forward begins.

    Each parameter becomes a ``DTensor``, which keeps its name, dtype, and whether it is trained.  It lies on the mesh's
    devices then, where a network on the host arrives a block at a time.

    Args:
        keep_outer: keep what is outside of the blocks after a forward.  A gradient that enters a network at a block's
            output, as the discriminator's, finds nothing else that would gather it.  Of a frozen network alone: one
            that runs without a gradient would not see what is written into its parameters.

    Dtypes are left to autocast, as in one process: FSDP's own mixed precision would round the timesteps.
    """
    for block in family.block_list(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=not keep_outer)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's piece of a sharded tensor, in its own memory; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """The tensors with sharded ones whole, on the host; empty unless ``keep``.

    Every process has to call it, with the same names: one tensor at a time is put together, on all of them.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
    return found


def like(whole: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor sharded as another is; as it is where the other is not.  Every process has to call it."""
    return distribute_tensor(whole, other.device_mesh, other.placements) if isinstance(other, DTensor) else whole


def settled(norm: Any) -> torch.Tensor:
    """A norm over sharded tensors as a plain number on every process.  Every process has to call it."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
