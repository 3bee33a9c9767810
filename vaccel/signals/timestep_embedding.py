"""How much the embedding of the timestep changes from step to step (TeaCache).

Where all steps' timesteps are known in advance, one batch at the first question answers it for the whole run: no
forward of the embedder, no reduction and no host sync is left on a step.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import ops


class TimestepEmbedding:
    """The changes of one run.  ``timesteps`` [T] are its steps' own, or None where only a call itself shows its one."""

    def __init__(self, buffers: Any, timesteps: torch.Tensor | None):
        self.buffers, self.timesteps = buffers, timesteps
        #: By key: the changes of all steps, None where they are not known in advance.
        self.tables: dict[tuple, list[list[float] | None] | None] = {}
        self._last: dict[tuple, tuple[int, torch.Size]] = {}  # the step whose embedding a buffer holds

    def change(self, key: tuple, model: Any, inputs: Any, index: int, projected: bool) -> list[float] | None:
        """Relative L1 of step ``index``'s embedding from that of the step before: one value, or one a row.

        ``key`` tells models and levels apart.  None where there is nothing to compare with.
        """
        if key not in self.tables:
            self.tables[key] = self._table(model, inputs, projected)
        table = self.tables[key]
        if table is not None:
            return table[index]
        now, before = model.modulation(inputs, projected), self._last.get(key)
        self._last[key] = index, now.shape
        change = None
        if before == (index - 1, now.shape):
            change = self._read(ops.relative_l1(now, self.buffers.of(("modulation", key))), key)
        self.buffers.keep(("modulation", key), now)
        return change

    def _table(self, model: Any, inputs: Any, projected: bool) -> list[list[float] | None] | None:
        every = None if self.timesteps is None else model.modulations(inputs, self.timesteps, projected)
        if every is None:
            return None
        return [None, *([value] for value in self._read(ops.relative_l1(every[1:], every[:-1]), "all"))]

    def _read(self, changes: torch.Tensor, key: Any) -> list[float]:
        return self.buffers.read(("modulation.change", key), changes).tolist()
