"""The two outputs of a full step, before guidance."""

from __future__ import annotations

from typing import Any

import torch

from .signal import Signal


class Branches(Signal):
    """(conditional output, unconditional output or None), [B, ...] each."""

    name = "branches"

    def __init__(self, run: Any):
        super().__init__(run)
        self.outputs: list[torch.Tensor] = []
        self.stage: Any = None
        self.batched = False

    def computed(self, call: Any, output: torch.Tensor) -> None:
        if call.branch == 0:
            self.outputs, self.stage, self.batched = [], call.stage, call.batched
        last = call.slots.get("large.last")  # kept anyway
        kept = last.buffer if last is not None else call.buffers.keep(("signal", call.branch), output)
        self.outputs.append(kept)

    def value(self, following: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        kept = self.outputs
        if self.batched:
            uncond, cond = kept[0].chunk(2)
            return cond, uncond
        # A second call of another size (skipped layers, a perturbed one) is no unconditional branch.
        return (kept[0], kept[1]) if len(kept) > 1 and kept[0].shape == kept[1].shape else (kept[0], None)
