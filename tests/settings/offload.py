"""Offload: weights elsewhere than where they are used, by accelerate's hooks and by diffusers' own.

On a CPU the place where weights wait and the place where they are used are the same device, so that a weight that
nobody has brought would go unseen.  accelerate's sequential offload leaves nothing but meta tensors in the model, and
of diffusers' groups the weights are NaN here until their group is brought: what is used without that shows.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from .base import Setting

CPU = torch.device("cpu")
#: Folders of weights on disk, kept as long as the process runs.
_FOLDERS: list[tempfile.TemporaryDirectory] = []


def _folder() -> str:
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="vaccel-settings-"))
    return _FOLDERS[-1].name


def denoiser(pipe: Any) -> torch.nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential(pipe: Any) -> None:
    """``pipe.enable_sequential_cpu_offload``, which asks for a device with a number."""
    from accelerate import cpu_offload

    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            cpu_offload(component, CPU, offload_buffers=len(component._parameters) > 0)


def group(pipe: Any, **how: Any) -> None:
    given = {"onload_device": CPU, "offload_device": CPU, "offload_type": "block_level", "num_blocks_per_group": 1}
    denoiser(pipe).enable_group_offload(**{**given, **how})
    elsewhere(denoiser(pipe))


def group_leaf(pipe: Any) -> None:
    group(pipe, offload_type="leaf_level", num_blocks_per_group=None)


def group_of_two(pipe: Any) -> None:
    group(pipe, num_blocks_per_group=2)


def group_whole_pipeline(pipe: Any) -> None:
    pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def elsewhere(model: torch.nn.Module) -> None:
    """Offloaded groups are NaN until they are brought, and again when they are taken away."""
    hooks = [
        vars(m)["_diffusers_hook"].hooks.get("group_offloading")
        for m in model.modules()
        if "_diffusers_hook" in vars(m)
    ]
    for one in {id(hook.group): hook.group for hook in hooks if hook is not None}.values():
        _away(one)


def _away(one: Any) -> None:
    kept: dict[int, torch.Tensor] = {}

    def tensors() -> list[torch.Tensor]:
        inner = [t for module in one.modules for t in (*module.parameters(), *module.buffers())]
        return [t for t in (*inner, *one.parameters, *one.buffers) if t.is_floating_point()]

    def offload() -> None:
        for t in tensors():
            if id(t) not in kept:
                kept[id(t)], t.data = t.data, torch.full_like(t.data, float("nan"))

    def onload() -> None:
        for t in tensors():
            t.data = kept.pop(id(t), t.data)

    one._onload_from_memory, one._offload_to_memory = onload, offload
    offload()


def by_hand(pipe: Any) -> None:
    from accelerate import cpu_offload_with_hook

    _, pipe.offload_hook = cpu_offload_with_hook(denoiser(pipe), CPU)


def dispatched(pipe: Any) -> None:
    from accelerate import dispatch_model

    dispatch_model(denoiser(pipe), {"": "cpu"}, main_device="cpu", force_hooks=True)


def disk(pipe: Any) -> None:
    from accelerate import disk_offload

    disk_offload(denoiser(pipe), _folder(), execution_device=CPU)


def aligned(pipe: Any) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    add_hook_to_module(denoiser(pipe), AlignDevicesHook(execution_device=CPU, io_same_device=True), append=True)


def switched_off(pipe: Any) -> None:
    pipe.remove_all_hooks()


OFFLOAD = {"group": "Offload", "neutral": True}
Setting("model offload", apply=model_offload, recipe="pipe.enable_model_cpu_offload()", fast=True, **OFFLOAD)
Setting("model offload taken off", first=model_offload, apply=switched_off, recipe="pipe.remove_all_hooks()", **OFFLOAD)
Setting("sequential offload", apply=sequential, recipe="pipe.enable_sequential_cpu_offload()", **OFFLOAD)
Setting("group offload, blocks", apply=group, recipe='enable_group_offload(..., "block_level", 1)', **OFFLOAD)
Setting("group offload, two blocks", apply=group_of_two, recipe='enable_group_offload(..., "block_level", 2)',
        **OFFLOAD)  # fmt: skip
Setting("group offload, leaves", apply=group_leaf, recipe='enable_group_offload(..., "leaf_level")', **OFFLOAD)
Setting("group offload, the pipeline's", apply=group_whole_pipeline, recipe="pipe.enable_group_offload(...)", **OFFLOAD)
Setting("cpu_offload_with_hook", apply=by_hand, recipe="accelerate.cpu_offload_with_hook(denoiser)", **OFFLOAD)
Setting("dispatch_model", apply=dispatched, recipe="accelerate.dispatch_model(denoiser, ...)", **OFFLOAD)
Setting("disk_offload", apply=disk, recipe="accelerate.disk_offload(denoiser, folder)", **OFFLOAD)
Setting("AlignDevicesHook", apply=aligned, recipe="accelerate.hooks.add_hook_to_module(denoiser, ...)", **OFFLOAD)
