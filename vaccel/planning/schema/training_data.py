"""The index of a distillation's training data (``index.json``), and the curves of its diagnosis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta

from .errors import place, shown
from .fields import Amount, Count, Declared, Fault, Fraction, Index, Model, Number

#: Nesting of a packed argument.
_DEEPEST = 16


class Shard(Declared, kw_only=True):
    """A file of samples."""

    file: str
    count: Count


class Arguments(Declared, kw_only=True):
    """The transformer's arguments: ``rows`` by name, one a sample; of the others how they are packed."""

    rows: list[str]
    cond: dict[str, dict[str, Any]]
    uncond: dict[str, dict[str, Any]] | None


class TrainingData(Declared, kw_only=True):
    model: Model
    base: str
    family: str
    call: dict[str, Any]
    negative_prompt: str | None
    shard_size: Count
    dtype: Literal["float32", "float16", "bfloat16", "float64"]
    count: Count
    shards: Annotated[list[Shard], Meta(min_length=1)]
    latents: Annotated[list[Count], Meta(min_length=1, max_length=8)]
    arguments: Arguments
    captions: list[str]

    def faults(self) -> Iterator[Fault]:
        for number, shard in enumerate(self.shards):
            at = f"shards[{number}]"
            if shard.file in ("", ".", "..") or any(c in shard.file for c in "/\\\0"):
                yield f"{at}.file", f"must be the name of a file in the same folder, got {shown(shard.file)}"
            left = self.count - number * self.shard_size
            if shard.count != min(self.shard_size, left):
                wanted = max(0, min(self.shard_size, left))
                yield f"{at}.count", f"must be {wanted}, of {self.count} samples, got {shard.count}"
        if sum(shard.count for shard in self.shards) != self.count:
            yield "shards", f"must hold {self.count} samples, got {sum(shard.count for shard in self.shards)}"
        if len(self.captions) != self.count:
            yield "captions", f"must have {self.count} entries, got {len(self.captions)}"
        for branch in ("cond", "uncond"):
            for name, tree in (getattr(self.arguments, branch) or {}).items():
                yield from _packed(tree, place(f"arguments.{branch}", name), {"rows"}, _DEEPEST)


def _packed(tree: Any, at: str, beside: set[str], deep: int) -> Iterator[Fault]:
    """Faults of a value as ``vaccel.distill.shards.pack`` writes it."""
    kinds = ("tensor", "tuple", "list", "dict", "value")
    inner = [kind for kind in kinds if isinstance(tree, dict) and kind in tree]
    if len(inner) != 1 or set(tree) - beside != {inner[0]} or not deep:
        yield at, f"must be an object of one of {', '.join(kinds)}, got {shown(tree)}"
        return
    kind, value = inner[0], tree[inner[0]]
    at = place(at, kind)
    if kind == "tensor" and not isinstance(value, str):
        yield at, f"must be a tensor's name, got {shown(value)}"
    elif kind == "dict":
        if not isinstance(value, dict):
            yield at, f"must be an object, got {shown(value)}"
            return
        for name, held in value.items():
            yield from _packed(held, place(at, name), set(), deep - 1)
    elif kind in ("tuple", "list"):
        if not isinstance(value, list):
            yield at, f"must be a list, got {shown(value)}"
            return
        for number, held in enumerate(value):
            yield from _packed(held, f"{at}[{number}]", set(), deep - 1)
    elif kind == "value" and isinstance(value, (dict, list)):
        yield at, f"must be a number, a string, true, false or null, got {shown(value)}"


class Curve(Declared, kw_only=True):
    """Loss and gradient of one model at points of the trajectory."""

    points: Annotated[list[Index], Meta(min_length=1)]
    sigma: list[Number]
    loss: list[Amount]
    gradient: list[Amount]
    boundary: Fraction


class Diagnosis(Declared, kw_only=True):
    curves: Annotated[dict[str, Curve], Meta(min_length=1)]

    def faults(self) -> Iterator[Fault]:
        for name, curve in self.curves.items():
            for field in ("sigma", "loss", "gradient"):
                if (found := len(getattr(curve, field))) != len(curve.points):
                    at = place(place("curves", name), field)
                    yield at, f"must have {len(curve.points)} entries, one a point, got {found}"
