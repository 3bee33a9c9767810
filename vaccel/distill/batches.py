"""The samples of an iteration: determined by seed and iteration alone, for any number of processes."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from .shards import Batch, Shards


class Slots:
    """Yields the slots of this process's batches, from an iteration on; a slot is a sample's number in the training.

    An iteration has ``batch`` slots, dealt out in ``parts`` batches to each of ``world`` processes.  Slots go through
    the data repeatedly, each time in another order.
    """

    def __init__(self, count: int, batch: int, *, seed: int, rank: int = 0, world: int = 1, parts: int = 1):
        if batch % (world * parts):
            raise ValueError(f"{batch} samples an iteration do not fill {parts} parts of {world} processes alike")
        self.count, self.batch, self.seed = count, batch, seed
        self.rank, self.world, self.parts = rank, world, parts

    def sample(self, slot: int) -> int:
        """Number of the sample in the data."""
        return self._order(slot // self.count)[slot % self.count]

    @functools.lru_cache(maxsize=4)  # noqa: B019 (lives as long as the training)
    def _order(self, epoch: int) -> list[int]:
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.count, generator=g).tolist()

    def of(self, iteration: int, part: int) -> list[int]:
        each = self.batch // (self.world * self.parts)
        first = iteration * self.batch + (part * self.world + self.rank) * each
        return list(range(first, first + each))

    def loader(self, shards: Shards, start: int, end: int, workers: int) -> Iterator[Batch]:
        """This process's batches from iteration ``start`` to before ``end``, read ahead by ``workers`` processes."""
        chosen = [
            [self.sample(slot) for slot in self.of(iteration, part)]
            for iteration in range(start, end)
            for part in range(self.parts)
        ]
        return iter(DataLoader(shards, batch_sampler=chosen, collate_fn=shards.collate, num_workers=workers))
