"""Reads the data of ``vaccel.distill.prepare``: samples by number, and batches as arguments of the transformer.

A folder of training data::

    index.json               what it was made with, the structure of the transformer's arguments, captions
    shared.safetensors       tensors all samples share: ``cond.<argument>...``, ``uncond.<argument>...``
    shard-00000.safetensors  ``latents`` [n, ...], ``cond.<argument>`` [n, ...]; where rows differ in shape they are
                             padded with zeros, and ``size.cond.<argument>`` [n, dimensions] holds their sizes
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from ..experts.files import naming
from ..models import FAMILIES, fingerprints
from ..models.family import Inputs
from ..planning import artifacts

METHOD = "dcm-data"
INDEX, SHARED = "index.json", "shared.safetensors"
ANEW = "remove the folder and prepare the data anew (`vaccel distill prepare`)"
Tensors = dict[str, torch.Tensor]
Sample = dict[str, Any]  # {"latents": [...], "cond": {argument: [...]}}


class Batch(NamedTuple):
    """Clean latents [B, ...] and the transformer's other arguments, rows aligned; ``uncond`` None without guidance."""

    latents: torch.Tensor
    cond: Inputs
    uncond: Inputs | None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on ``device``."""
        return Batch(*(_mapped(part, lambda t: t.to(device, non_blocking=non_blocking)) for part in self))


class Shards(Dataset):
    """Samples of a prepared folder, by number, in the order they were prepared.

    Shards are not loaded into memory: a sample is a slice of its shard, whose file each process opens once, when first
    needed. With a ``DataLoader`` pass ``collate_fn=shards.collate``.

    Args:
        folder: the folder that ``prepare`` wrote.
        model: the transformer that will be trained; checked against the one the data were made with.

    Attributes:
        index: the data of ``index.json``; ``family``: the model's family; ``captions``: one a sample.

    Raises ``FileNotFoundError`` for no such folder or a missing file of it, ``ValueError`` for another model's data, a
    damaged file, and shards that do not hold what the index says.
    """

    def __init__(self, folder: str | Path, *, model: nn.Module | None = None):
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            raise FileNotFoundError(f"no training data at {self.folder}: `vaccel distill prepare` writes them")
        self.index = read_index(self.folder)
        if model is not None and (here := fingerprints.of_model(model)) != self.index["model"]:
            made = self.index["model"]
            raise ValueError(
                f"{self.folder} was prepared with {made['class']} {made['config']}, the model is {here['class']} "
                f"{here['config']}: prepare the data with its pipeline"
            )
        if self.index["family"] not in FAMILIES:
            raise ValueError(f"{self.folder / INDEX}: family must be one of {', '.join(FAMILIES)}; {ANEW}")
        self.family = FAMILIES[self.index["family"]]
        self.captions: list[str] = self.index["captions"]
        self._shared = read_shared(self.folder, self.index["arguments"])
        for shard in self.index["shards"]:
            ShardFile(self.folder / shard["file"]).check(
                shard["count"], self.index["latents"], self.index["arguments"]["rows"]
            )
        self._open: dict[tuple[int, str], ShardFile] = {}  # by process and file

    def __len__(self) -> int:
        return self.index["count"]

    def __getitem__(self, i: int) -> Sample:
        """Sample ``i``; raises ``IndexError`` outside of the data."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        # Every shard but the last one is of one size.
        number, row = divmod(i % len(self), self.index["shards"][0]["count"])
        return self._shard(self.index["shards"][number]["file"]).sample(row)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files cannot be pickled

    def _shard(self, name: str) -> ShardFile:
        key = os.getpid(), name
        if key not in self._open:
            self._open[key] = ShardFile(self.folder / name)
        return self._open[key]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """One batch of samples, such that ``transformer(hidden_states=x, timestep=family.timestep(t), **batch.cond,
        return_dict=False)`` is the call the pipeline would make of x [B, ...] and t [B].

        Raises ``ValueError`` where samples differ in shape, as prompts of several lengths do that are not padded.
        """
        rows = {name: _stacked(name, [s["cond"][name] for s in samples]) for name in samples[0]["cond"]}
        latents = _stacked("latents", [s["latents"] for s in samples])
        # In half precision neighbouring noise levels would be equal.
        latents = latents.float() if latents.element_size() < 4 else latents
        structure, count = self.index["arguments"], len(samples)
        cond = self._arguments(structure["cond"], count) | rows
        uncond = None if structure["uncond"] is None else self._arguments(structure["uncond"], count)
        return Batch(latents, cond, uncond)

    def _arguments(self, trees: dict[str, Any], count: int) -> Inputs:
        """Arguments that all samples share, for ``count`` rows."""
        arguments = {}
        for name, tree in trees.items():
            value = unpack(tree, self._shared)
            if "rows" in tree:
                value = value.expand(count, *value.shape[1:])
            elif name in self.family.row_lists and isinstance(value, list) and len(value) == 1:
                value = value * count
            arguments[name] = value
        return arguments


def read_index(folder: Path) -> dict[str, Any]:
    """The data of a folder's index.  Raises ``ValueError`` that names the field where it is damaged."""
    try:
        return artifacts.read(folder / INDEX, METHOD)
    except ValueError as error:
        raise ValueError(f"{error}; {ANEW}") from None


def read_shared(folder: Path, arguments: dict[str, Any]) -> Tensors:
    """The tensors that all samples share.  Raises ``ValueError`` where it is damaged or lacks one that is named."""
    path = folder / SHARED
    if not path.is_file():
        raise FileNotFoundError(f"{path} is gone: {ANEW}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or was cut short ({error}): {ANEW}") from None
    for branch in ("cond", "uncond"):
        for name in _named((arguments[branch] or {}).values()):
            if name not in tensors:
                raise ValueError(f"{path} has no tensor {name}, which {INDEX} names: {ANEW}")
    return tensors


def _named(trees: Iterable[Any]) -> Iterator[str]:
    """The tensors that packed values name."""
    for tree in trees:
        for kind, value in tree.items():
            if kind == "tensor":
                yield value
            elif kind in ("tuple", "list"):
                yield from _named(value)
            elif kind == "dict":
                yield from _named(value.values())


class ShardFile:
    """One open shard.  Raises ``FileNotFoundError``, and ``ValueError`` for a file that is damaged."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is gone: {ANEW}")
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is no safetensors file, or was cut short ({error}): {ANEW}") from None
        self._names = sorted(self._file.keys())

    def check(self, count: int, latents: list[int], rows: list[str]) -> None:
        """Raises ``ValueError`` unless it has ``count`` samples of these latents and these arguments."""
        for name in ("latents", *(f"cond.{row}" for row in rows)):
            if name not in self._names:
                raise ValueError(f"{self.path} has no {name}, which {INDEX} names: {ANEW}")
            shape = self._file.get_slice(name).get_shape()
            # A shard that was written just before a kill may hold samples that the index does not count yet.
            if not shape or shape[0] < count or (name == "latents" and shape[1:] != latents):
                wanted = [count, *latents] if name == "latents" else f"{count} rows"
                raise ValueError(f"{self.path}: {name} is {shape}, {INDEX} says {wanted}: {ANEW}")

    def sample(self, row: int) -> Sample:
        return {"latents": self._row("latents", row), "cond": self.condition(row)}

    def condition(self, row: int) -> Tensors:
        """The arguments of this sample that are not shared."""
        names = [name for name in self._names if name.startswith("cond.")]
        return {name.removeprefix("cond."): self._row(name, row) for name in names}

    def _row(self, name: str, row: int) -> torch.Tensor:
        value = self._file.get_slice(name)[row : row + 1][0]
        if f"size.{name}" in self._names:
            size = self._file.get_slice(f"size.{name}")[row : row + 1][0].tolist()
            value = value[tuple(slice(n) for n in size)].contiguous()
        return value


def write_shard(path: Path, samples: Sequence[Sample]) -> None:
    """Writes a shard atomically."""
    tensors = {"latents": torch.stack([s["latents"] for s in samples])}
    for argument in samples[0]["cond"]:
        name, rows = f"cond.{argument}", [s["cond"][argument] for s in samples]
        sizes = torch.tensor([row.shape for row in rows], dtype=torch.int64)
        if all(row.shape == rows[0].shape for row in rows):
            tensors[name] = torch.stack(rows)
            continue
        tensors[name] = rows[0].new_zeros(len(rows), *sizes.amax(dim=0).tolist())
        tensors[f"size.{name}"] = sizes
        for filled, row in zip(tensors[name], rows, strict=True):
            filled[tuple(slice(n) for n in row.shape)] = row
    with naming(path):
        artifacts.save_tensors(path, tensors)


def pack(value: Any, name: str, tensors: Tensors) -> dict[str, Any]:
    """A value of tensors, containers and plain data as JSON; its tensors go into ``tensors``, named after ``name``.

    Raises ``ValueError`` for anything else.
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": {str(k): pack(v, f"{name}.{k}", tensors) for k, v in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ValueError(f"argument {name} holds a {type(value).__name__}, which training data cannot keep")


def unpack(tree: dict[str, Any], tensors: Tensors) -> Any:
    """The inverse of ``pack``."""
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "tuple" in tree:
        return tuple(unpack(t, tensors) for t in tree["tuple"])
    if "list" in tree:
        return [unpack(t, tensors) for t in tree["list"]]
    if "dict" in tree:
        return {k: unpack(t, tensors) for k, t in tree["dict"].items()}
    return tree["value"]


def _stacked(name: str, rows: list[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: the samples of this batch have different shapes ({', '.join(map(str, sorted(shapes)))}); use a "
            "batch of one"
        )
    return torch.stack(rows)


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a value with a function applied to every tensor in it."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _mapped(v, change) for k, v in value.items()}
    return value


__all__ = ["Batch", "Sample", "Shards"]
