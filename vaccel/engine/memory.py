"""How many bytes a method's stores and signals will hold, from shapes alone; what a run then allocates is the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ..methods import Method
from ..models.call import Stage
from ..signals import Signal


@dataclasses.dataclass
class Planned:
    """What stores and signals are asked about.

    Attributes:
        stage: a part of the run, with its models.
        x: a call's latents [rows, ...] on the meta device.
        sample: one sample's of them.
        branches: 2 with guidance, else 1.
        calls: how many calls a step has.
        names: of the method's stores.
    """

    stage: Stage
    x: torch.Tensor
    sample: torch.Tensor
    branches: int
    calls: int
    names: frozenset[str]

    @staticmethod
    def nbytes(t: torch.Tensor) -> int:
        return t.numel() * t.element_size()


def plan(method: Method, stages: Sequence[Stage], x: torch.Tensor, branches: int, *, batched: bool) -> dict[str, int]:
    """Bytes by what they are for, and in all under "total".

    Args:
        stages: the parts of a run, with their models.
        x: a call's latents [rows, ...] on the meta device, in the dtype that the models are called in.
        branches: 2 with guidance, else 1.
        batched: whether both branches come in one call, in ``x``'s rows.
    """
    calls, rows = (1, branches) if batched else (branches, 1)
    sample, names = x[: len(x) // rows], frozenset(store.name for store in method.stores)
    planned: dict[str, int] = {}
    for store in sorted(method.stores, key=lambda s: s.name):
        of = stages[:1] if store.crosses else stages
        each = (store.nbytes(Planned(stage, x, sample, branches, calls, names)) for stage in of)
        planned[store.name] = sum(each)
    of_signals = Planned(stages[0], x, sample, branches, calls, names)
    for kind in _all_of(method.watches):
        planned |= kind.nbytes(of_signals)
    planned |= {name: Planned.nbytes(kept) for name, kept in method.keeps(sample).items()}
    return planned | {"total": sum(planned.values())}


def _all_of(kinds: Sequence[type[Signal]]) -> list[type[Signal]]:
    """The signals and those that they are made of."""
    return [found for kind in kinds for found in (*_all_of(kind.requires), kind)]
