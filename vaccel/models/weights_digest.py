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

import dataclasses
import hashlib
import re
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

#: Words of 32 bits that are summed into one number.
BLOCK = 8192
#: Words that are read at once: what a CPU's cache holds; enough to fill an accelerator.
CHUNK = {"cpu": 2**18}
LARGE_CHUNK = 2**22
#: Elements of a tensor that are looked at when nothing says that it was written to.
PROBES = 128


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
    lines, contents, _ = _described(model, cached)
    return _hash("\n".join(sorted(f"{name} {line}" for name, line in [*lines, *contents])).encode())


def digest_of(models: Mapping[str, nn.Module]) -> str:
    """One digest of several models by name, such as a pipeline's ``transformer`` and ``transformer_2``."""
    return _hash("\n".join(f"{name} {digest(models[name])}" for name in sorted(models)).encode())


def identity(models: Mapping[str, nn.Module]) -> dict[str, str]:
    """What tells models' weights in force from others', apart by what may differ.

    Returns digests: "weights", of the contents but for adapters'; "adapters", "none" where there are none; and
    "storage", how the weights are stored: their dtypes and kinds in words.
    """
    base, adapted, storage = [], [], set()
    for model_name in sorted(models):
        lines, contents, tuners = _described(models[model_name], cached=True)
        for name, line in [*lines, *contents]:
            inner = next((name[len(t) + 1 :] for t in tuners if name.startswith(f"{t}.") or name == t), "base_layer.")
            if inner.startswith("base_layer."):
                base.append(f"{model_name} {name.replace('.base_layer.', '.')} {line}")
            else:
                adapted.append(f"{model_name} {name} {line}")
        storage |= _storage(models[model_name])
    return {
        "weights": _hash("\n".join(sorted(base)).encode()),
        "adapters": _hash("\n".join(sorted(adapted)).encode()) if adapted else "none",
        "storage": ", ".join(sorted(storage)),
    }


def _storage(model: nn.Module) -> set[str]:
    found = set()
    for _, tensor, _ in _tensors(list(model.named_modules())):
        plain = type(tensor) in (torch.Tensor, nn.Parameter) or nn.parameter.is_lazy(tensor)
        found.add(str(tensor.dtype).removeprefix("torch.") if plain else type(tensor).__qualname__)
    return found


def _described(model: nn.Module, cached: bool) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]:
    """(name, words) and (name, digest of the contents) of everything that counts, and the names of peft's layers."""
    found = _Found()
    modules = list(model.named_modules())
    for name, tensor, file in _tensors(modules):
        found.add(name, tensor, file)
    found.lines += _adapters(modules)
    contents = _contents(found.leaves, cached)
    tuners = [_plain_name(name) for name, module in modules if _is_tuner(module)]
    named = [(leaf.name, content) for leaf, content in zip(found.leaves, contents, strict=True)]
    return [tuple(line.split(" ", 1)) for line in found.lines], named, tuners


def _is_tuner(module: nn.Module) -> bool:
    """Whether it is a layer of peft's: a property of those; diffusers' models have a method of that name."""
    return isinstance(getattr(type(module), "disable_adapters", None), property)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# --- what a model consists of ---------------------------------------------------------------------------------------


class _Leaf(NamedTuple):
    """Plain memory, or a file of accelerate's that is only read when it has to be.

    ``owner`` is what it belongs to, and ``part`` tells several of one owner apart.
    """

    name: str
    tensor: torch.Tensor | None
    owner: Any
    part: str = ""
    dtype: torch.dtype | None = None  # of a file's, as the model has it


def _tensors(modules: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, torch.Tensor, _Leaf | None]]:
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
) -> tuple[torch.Tensor, _Leaf | None]:
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
            return meta, _Leaf(_plain_name(name), None, kept, key, meta.dtype)
    return meta, None


class _Found:
    """Plain memory by name, and in words what is to be said besides."""

    def __init__(self) -> None:
        self.leaves: list[_Leaf] = []
        self.lines: list[str] = []

    def add(self, name: str, tensor: torch.Tensor, file: _Leaf | None = None) -> None:
        if nn.parameter.is_lazy(tensor):
            self.lines.append(f"{name} not initialised")
            return
        kind = type(tensor)
        self.lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        if kind not in (torch.Tensor, nn.Parameter):
            self.lines.append(f"{name} is {kind.__module__}.{kind.__qualname__}")
            if hasattr(tensor, "__tensor_flatten__"):
                inner, context = tensor.__tensor_flatten__()
                self.lines.append(f"{name} with {_words(context)}")
                for key in inner:
                    self.add(f"{name}.{key}", getattr(tensor, key))
                return
            self._attributes(name, tensor, 3)
        if file is not None:
            self.leaves.append(file)
        for part, plain in _plain(tensor):
            self.leaves.append(_Leaf(f"{name}{part}", plain, tensor, part))

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
                self.lines.append(f"{at} {_words(value)}")


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


def _adapters(modules: list[tuple[str, nn.Module]]) -> Iterator[str]:
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
        yield f"{_plain_name(name)} {type(module).__qualname__} {_words(said)}"


# --- contents, read once ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Known:
    """What was read: of which object, at which address and version, with which values at the probed places."""

    owner: weakref.ref
    where: tuple[Any, ...]
    probe: bytes
    content: str


_KNOWN: dict[tuple[int, str], _Known] = {}


def _contents(leaves: list[_Leaf], cached: bool) -> list[str]:
    """Digests of the contents, read anew where they may have changed."""
    places, probes = [_where(leaf) for leaf in leaves], _probes([leaf.tensor for leaf in leaves])
    known = [_KNOWN.get((id(leaf.owner), leaf.part)) for leaf in leaves]
    same = [
        k is not None and where is not None and k.owner() is leaf.owner and k.where == where
        for k, where, leaf in zip(known, places, leaves, strict=True)
    ]
    # One that was written to past the version counter: so may be others, at places that were not probed.
    past = any(s and k.probe != probe for s, k, probe in zip(same, known, probes, strict=True))
    reader, found = _Reader(), []
    for leaf, where, probe, k, unchanged in zip(leaves, places, probes, known, same, strict=True):
        if cached and unchanged and not past:
            found.append(k.content)
            continue
        found.append(reader.content(leaf.owner[leaf.part].to(leaf.dtype) if leaf.tensor is None else leaf.tensor))
        if where is not None:
            key = id(leaf.owner), leaf.part
            _KNOWN[key] = _Known(weakref.ref(leaf.owner, _forgetting(key)), where, probe, found[-1])
    return found


def _where(leaf: _Leaf) -> tuple[Any, ...] | None:
    """What changes when a tensor is written to or moved; None where that cannot be seen."""
    tensor = leaf.tensor
    if tensor is None:
        return (leaf.dtype,)  # nobody writes to the files of a model that is loaded
    try:
        version = tensor._version
    except RuntimeError:  # an inference tensor counts no versions
        return None
    return tensor.device, tensor.data_ptr(), version, tensor.dtype, tensor.shape, tensor.stride()


def _forgetting(key: tuple[int, str]) -> Any:
    def forget(owner: weakref.ref) -> None:
        if (known := _KNOWN.get(key)) is not None and known.owner is owner:
            del _KNOWN[key]

    return forget


def _probes(tensors: list[torch.Tensor | None]) -> list[bytes]:
    """The bits of a few elements of every tensor; one transfer to the host for all of a device and width."""
    groups: dict[tuple[torch.device, int], list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        if tensor is not None:
            groups[tensor.device, tensor.element_size()].append(number)
    found = [b""] * len(tensors)
    for (_, width), numbers in groups.items():
        views = [_probe(tensors[n], width) for n in numbers]
        values = torch.cat(views).cpu().view(torch.uint8).numpy().tobytes()
        at = 0
        for n, view in zip(numbers, views, strict=True):
            size = view.numel() * view.element_size()
            found[n] = values[at : at + size]
            at += size
    return found


def _probe(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """Evenly spaced places of a tensor's memory, as integers."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(width, torch.int64)
    if tensor.is_contiguous():
        span = tensor.numel()
    else:
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    count = min(PROBES, span)
    step = span // count
    if span > PROBES**2:
        step |= 1  # not in one column of a matrix alone
    view = tensor.as_strided((count,), (step,), tensor.storage_offset())
    return torch.view_as_real(view).contiguous().view(torch.int64).flatten() if width > 8 else view.view(integer)


class _Reader:
    """Sums contents; holds what that takes on every device."""

    def __init__(self) -> None:
        self._factors: dict[torch.device, torch.Tensor] = {}
        self._space: torch.Tensor | None = None

    def content(self, tensor: torch.Tensor) -> str:
        """The digest of a tensor's elements in their order, whatever its strides."""
        device = tensor.device if tensor.device.type in ("cpu", "cuda", "xpu") else torch.device("cpu")
        if device not in self._factors:
            self._factors[device] = torch.from_numpy(_FACTORS).to(device)
        factors, sums = self._factors[device], []
        size = CHUNK.get(device.type, LARGE_CHUNK) * 4 // tensor.element_size()
        for start in range(0, tensor.numel(), size):
            words = _as_words(_elements(tensor, start, min(start + size, tensor.numel())).to(device))
            whole = len(words) // BLOCK * BLOCK
            if whole:
                sums.append(self._sums(words[:whole].view(-1, BLOCK), factors))
            if whole < len(words):
                rest = words[whole:]
                sums.append((rest * factors[: len(rest)]).sum().view(1))
        return _hash(torch.cat(sums).cpu().numpy().astype("<i8").tobytes())

    def _sums(self, words: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Of each row [blocks] in int64, which wraps: the sum of its words times their factors."""
        if words.device.type != "cpu":
            return (words * factors).sum(1)
        if self._space is None:
            self._space = torch.empty(CHUNK["cpu"] // BLOCK, BLOCK, dtype=torch.int64, device="cpu")
        return torch.mv(self._space[: len(words)].copy_(words), factors)


def _factors() -> np.ndarray:
    """[BLOCK], int64, odd and without pattern (splitmix64): no two agree in their last 33 bits.

    Words are of 32 bits, so two that change places change the sum.
    """
    with np.errstate(over="ignore"):
        x = np.arange(1, BLOCK + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) | np.uint64(1)).view(np.int64)


_FACTORS = _factors()


def _elements(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Elements start ... stop - 1 in the order of a contiguous tensor, as one; no more than these are copied."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    row = tensor[0].numel()
    first, last = start // row, (stop - 1) // row
    if row > stop - start or first == last:
        spans = [(r, max(start - r * row, 0), min(stop - r * row, row)) for r in range(first, last + 1)]
        return torch.cat([_elements(tensor[r], a, b) for r, a, b in spans])
    return tensor[first : last + 1].reshape(-1)[start - first * row : stop - first * row]


def _as_words(elements: torch.Tensor) -> torch.Tensor:
    """Contiguous elements [n] as int32 words; bytes that fill none are filled up with zeros."""
    if elements.is_complex():
        elements = torch.view_as_real(elements).view(-1)
    missing = -elements.numel() * elements.element_size() % 4
    if missing or elements.data_ptr() % 4 or elements.storage_offset() * elements.element_size() % 4:
        data = torch.zeros(
            elements.numel() * elements.element_size() + missing, dtype=torch.uint8, device=elements.device
        )
        data[: len(data) - missing].copy_(elements.view(torch.uint8))
        elements = data
    return elements.view(torch.int32)
