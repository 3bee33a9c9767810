"""How much the embedding of the timestep changes from step to step.

Where all steps' timesteps are known in advance, one batch at the first question answers it for the whole run: no
forward of the embedder, no reduction and no host sync is left on a step.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import ops
from ..cache.buffers import Buffers
from ..models.transformer import Model


class Modulations:
    """The changes of one run.  ``timesteps`` [T] are its steps' own, or None where only a call itself shows its one."""

    def __init__(self, buffers: Buffers, timesteps: torch.Tensor | None):
        self.buffers, self.timesteps = buffers, timesteps
        self._tables: dict[tuple, list[float] | None] = {}
        self._last: dict[tuple, int] = {}  # the step whose modulation a buffer holds

    def change(self, key: tuple, model: Model, inputs: Any, index: int, projected: bool) -> list[float] | None:
        """Relative L1 of step ``index``'s modulation from that of the step before: one value, or one a row.

        ``key`` tells models and levels apart.  None where there is nothing to compare with.
        """
        if key not in self._tables:
            self._tables[key] = self._table(model, inputs, projected)
        table = self._tables[key]
        if table is not None:
            return [table[index - 1]] if index else None
        now, before = model.modulation(inputs, projected), self._last.get(key)
        self._last[key] = index
        change = None
        if before == index - 1:
            change = ops.relative_l1(now, self.buffers.of(("modulation", key))).tolist()
        self.buffers.keep(("modulation", key), now)
        return change

    def _table(self, model: Model, inputs: Any, projected: bool) -> list[float] | None:
        every = None if self.timesteps is None else model.modulations(inputs, self.timesteps, projected)
        return None if every is None else ops.relative_l1(every[1:], every[:-1]).tolist()
