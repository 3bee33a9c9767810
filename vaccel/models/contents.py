"""The contents of a model's tensors as digests: read where they lie, and read once as long as nobody writes to them."""

from __future__ import annotations

import dataclasses
import hashlib
import weakref
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch

#: Words of 32 bits that are summed into one number.
BLOCK = 8192
#: Words that are read at once: what a CPU's cache holds; enough to fill an accelerator.
CHUNK = {"cpu": 2**18}
LARGE_CHUNK = 2**22
#: Elements of a tensor that are looked at when nothing says that it was written to.
PROBES = 128


class Leaf(NamedTuple):
    """Plain memory, or a file of accelerate's that is only read when it has to be.

    ``owner`` is what it belongs to, and ``part`` tells several of one owner apart.
    """

    name: str
    tensor: torch.Tensor | None
    owner: Any
    part: str = ""
    dtype: torch.dtype | None = None  # of a file's, as the model has it


def hash_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclasses.dataclass(slots=True)
class _Known:
    """What was read: of which object, at which address and version, with which values at the probed places."""

    owner: weakref.ref
    where: tuple[Any, ...]
    probe: bytes
    content: str


_KNOWN: dict[tuple[int, str], _Known] = {}


def contents_of(leaves: list[Leaf], cached: bool) -> list[str]:
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


def _where(leaf: Leaf) -> tuple[Any, ...] | None:
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
        return hash_of(torch.cat(sums).cpu().numpy().astype("<i8").tobytes())

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
