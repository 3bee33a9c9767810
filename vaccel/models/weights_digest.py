"""A digest of the weights that a model computes with, as they are now: parameters, adapters, quantisation.

What was measured on some weights (a calibration, what ``Auto`` has learnt) is true of those weights alone: another
checkpoint of the same architecture, a LoRA, another scale of it, or quantised weights have other velocities and other
errors.  A configuration cannot tell them apart; this digest can.  It is a fingerprint against mix-ups, not a signature
against forgery.

Two models have one digest when their parameters and persistent buffers agree in names, shapes, dtypes and every bit,
their peft layers in active adapters, scales, what is merged and what is switched off, and their quantised tensors in
class and settings.  The device does not matter, nor does ``torch.compile``.  Contents are summed where they lie, in
64-bit integers that wrap, every word times an odd number of its own place: exact, in any order, on any device, so that
each changed bit and each swapped pair of words counts.  A chunk at a time is read; nothing is copied to the host but
one number for every ``BLOCK`` words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .contents import Leaf, contents_of, hash_of
from .locks import lock_of


@torch.no_grad()
def digest(model: nn.Module, *, cached: bool = True) -> str:
    """The digest of a model's weights in force, 32 hexadecimal digits.

    The first call reads every weight once, at the memory's speed.  Later ones read only tensors that were replaced,
    moved or written to since, and a few elements of every other (some microseconds a parameter).  In-place writes are
    seen by torch's version counters; those past them (``weight.data += delta``, as peft merges a LoRA) by the few
    elements, and then all weights are read anew.  A write past the counters that spares all of these elements is not
    seen: ``cached=False`` reads everything.

    A weight on the meta device counts with its contents where accelerate's offloading has them, else by name and
    shape alone.
    """
    found, contents = _described(model, cached)
    return hash_of("\n".join(sorted(f"{name} {line}" for name, line in [*found.lines, *contents])).encode())


def digest_of(models: Mapping[str, nn.Module]) -> str:
    """One digest of several models by name, such as a pipeline's ``transformer`` and ``transformer_2``."""
    return hash_of("\n".join(f"{name} {digest(models[name])}" for name in sorted(models)).encode())


def identity(models: Mapping[str, nn.Module]) -> dict[str, str]:
    """What tells models' weights in force from others', apart by what may differ.

    Returns digests: "weights", of the contents but for adapters'; "adapters", "none" where there are none; and
    "storage", how the weights are stored: their dtypes and kinds in words.
    """
    base, adapted, storage = [], [], set()
    for model_name in sorted(models):
        found, contents = _described(models[model_name], cached=True)
        storage |= found.storage
        for name, line in [*found.lines, *contents]:
            (adapted if _of_adapter(name, found.tuners) else base).append(
                f"{model_name} {name.replace('.base_layer.', '.')} {line}"
            )
    return {
        "weights": hash_of("\n".join(sorted(base)).encode()),
        "adapters": hash_of("\n".join(sorted(adapted)).encode()) if adapted else "none",
        "storage": ", ".join(sorted(storage)),
    }


def _of_adapter(name: str, tuners: set[str]) -> bool:
    """Whether a name is that of one of peft's layers or of what such a layer adds to its base layer."""
    parts = name.split(".")
    return any(
        ".".join(parts[:end]) in tuners and parts[end : end + 1] != ["base_layer"] for end in range(1, len(parts) + 1)
    )


def _described(model: nn.Module, cached: bool) -> tuple[_Found, list[tuple[str, str]]]:
    """What a model consists of, and (name, digest) of all contents."""
    found = _Found()
    with lock_of(model):
        modules = list(model.named_modules())
    for name, tensor, file in _tensors(modules):
        found.add(name, tensor, file)
        plain = type(tensor) in (torch.Tensor, nn.Parameter) or nn.parameter.is_lazy(tensor)
        found.storage.add(str(tensor.dtype).removeprefix("torch.") if plain else type(tensor).__qualname__)
    found.lines += _adapters(modules)
    found.tuners = {_plain_name(name) for name, module in modules if _is_tuner(module)}
    contents = contents_of(found.leaves, cached)
    return found, [(leaf.name, content) for leaf, content in zip(found.leaves, contents, strict=True)]


def _is_tuner(module: nn.Module) -> bool:
    """Whether it is a layer of peft's: a property of those; diffusers' models have a method of that name."""
    return isinstance(getattr(type(module), "disable_adapters", None), property)


# --- what a model consists of ---------------------------------------------------------------------------------------


def _tensors(modules: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, torch.Tensor, Leaf | None]]:
    """Parameters and persistent buffers by their names in the model, shared ones under each; offloaded ones as kept.

    The third is the file that holds a meta tensor's contents.
    """
    hooked: dict[str, Mapping[str, torch.Tensor]] = {}
    for prefix, module in modules:
        hook = module.__dict__.get("_hf_hook")
        for each in getattr(hook, "hooks", (hook,)):  # accelerate's, one or several
            if getattr(each, "weights_map", None) is not None:
                hooked[prefix] = each.weights_map
        skipped = module._non_persistent_buffers_set
        held = {**module._parameters, **{k: b for k, b in module._buffers.items() if k not in skipped}}
        scales = getattr(module.__dict__.get("state"), "SCB", None)  # bitsandbytes moves them at the first forward
        if isinstance(scales, torch.Tensor):
            held["weight.SCB"] = scales
        for key, tensor in held.items():
            if tensor is None:
                continue
            name, file = f"{prefix}.{key}" if prefix else key, None
            if tensor.device.type == "meta" and hooked:
                tensor, file = _offloaded(hooked, name, tensor)
            yield _plain_name(name), tensor, file


def _plain_name(name: str) -> str:
    return name.replace("_orig_mod.", "")  # torch.compile's wrapper


def _offloaded(
    hooked: Mapping[str, Mapping[str, torch.Tensor]], name: str, meta: torch.Tensor
) -> tuple[torch.Tensor, Leaf | None]:
    """A weight, or the file of it, from the nearest map above that has it."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        kept, key = hooked.get(".".join(parts[:cut])), ".".join(parts[cut:])
        while hasattr(kept, "prefix") and hasattr(kept, "dataset"):  # accelerate's PrefixedDataset
            kept, key = kept.dataset, f"{kept.prefix}{key}"
        in_memory = getattr(kept, "state_dict", kept)
        if isinstance(in_memory, dict) and isinstance(in_memory.get(key), torch.Tensor):
            return in_memory[key], None
        if kept is not None and key in kept:
            return meta, Leaf(_plain_name(name), None, kept, key, meta.dtype)
    return meta, None


class _Found:
    """Plain memory by name; (name, words) of what is to be said besides; how it is stored; names of peft's layers."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self.lines: list[tuple[str, str]] = []
        self.storage: set[str] = set()
        self.tuners: set[str] = set()

    def add(self, name: str, tensor: torch.Tensor, file: Leaf | None = None) -> None:
        if nn.parameter.is_lazy(tensor):
            self.lines.append((name, "not initialised"))
            return
        kind = type(tensor)
        self.lines.append((name, f"{tensor.dtype} {tuple(tensor.shape)}"))
        if kind not in (torch.Tensor, nn.Parameter):
            self.lines.append((name, f"is {kind.__module__}.{kind.__qualname__}"))
            if hasattr(tensor, "__tensor_flatten__"):
                inner, context = tensor.__tensor_flatten__()
                self.lines.append((name, f"with {_words(context)}"))
                for key in inner:
                    self.add(f"{name}.{key}", getattr(tensor, key))
                return
            self._attributes(name, tensor, 3)
        if file is not None:
            self.leaves.append(file)
        for part, plain in _plain(tensor):
            self.leaves.append(Leaf(f"{name}{part}", plain, tensor, part))

    def _attributes(self, name: str, held: Any, depth: int) -> None:
        """The settings and tables that a quantised tensor without ``__tensor_flatten__`` has as attributes."""
        for key, value in sorted(vars(held).items()):
            at = f"{name}.{key}"
            if key.startswith("_") or key == "CB" or value is None or isinstance(value, nn.Module):
                continue  # CB of bitsandbytes is the tensor itself
            if isinstance(value, torch.Tensor):
                self.add(at, value)
            elif depth and hasattr(value, "__dict__") and not isinstance(value, (int, type)):
                self._attributes(at, value, depth - 1)
            else:
                self.lines.append((at, _words(value)))


def _words(value: Any) -> str:
    """A value in words that are the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _plain(tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The strided memory of a tensor that is no wrapper; none where it has none."""
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        with torch._C.DisableTorchFunctionSubclass():
            tensor = tensor.detach().as_subclass(torch.Tensor)
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.detach().coalesce()
        return [(".indices", tensor.indices()), (".values", tensor.values())]
    if tensor.layout is not torch.strided or tensor.device.type == "meta" or not tensor.numel():
        return []
    if not tensor.untyped_storage().nbytes():  # freed, or a wrapper's
        return []
    return [("", tensor.resolve_conj() if tensor.is_complex() else tensor)]


def _adapters(modules: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, str]]:
    """In words, what peft's layers do with their adapters.

    Scales are rounded: a pipeline that multiplies them for a call and divides them after it leaves 0.4 a little off.
    """

    def scale(of: Mapping[str, Any], adapter: str) -> Any:
        return format(of[adapter], ".9g") if isinstance(of.get(adapter), float) else of.get(adapter)

    for name, module in modules:
        if not _is_tuner(module):
            continue
        scaling, variants = getattr(module, "scaling", {}), getattr(module, "lora_variant", {})
        said = {
            "active": [(a, scale(scaling, a), type(variants.get(a)).__name__) for a in sorted(module.active_adapters)],
            "merged": [(a, scale(scaling, a)) for a in getattr(module, "merged_adapters", ())],
            "disabled": module.disable_adapters,
        }
        yield _plain_name(name), f"{type(module).__qualname__} {_words(said)}"
