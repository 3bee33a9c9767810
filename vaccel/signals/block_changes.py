"""How much the states after blocks have changed from step to step."""

from __future__ import annotations

from typing import Any

import torch

from .signal import Signal


class BlockChanges(Signal):
    """For every kept block that was run at this step and at the last one: relative L1 [B] of its conditional state.

    Known of any step, computed in full or resumed.
    """

    name = "block_changes"
    any_step = True

    def value(self, following: Any) -> dict[int, torch.Tensor]:
        states = self.run.first_call.slots.get("large.states")
        return states.changes if states is not None else {}
