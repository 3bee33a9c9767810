"""Residual, "r": what a computed step has added to its input, added again (LeMiCa, TeaCache, EasyCache)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from .base import Action, ModelName, ReuseLevel
from .small import Small


@dataclasses.dataclass(frozen=True)
class Residual(Action):
    """x + cached residual: of the block stack (embeddings and head computed anew) or of the whole output."""

    letter: ClassVar[str] = "r"
    about: ClassVar[str] = "the last computed step's residual, added again"
    reuse: ReuseLevel = "blocks"
    model: ModelName = "large"

    @property
    def store(self) -> str:
        """The name of the store that it reads."""
        return f"{self.model}.{self.reuse}"

    def missing(self, call: Any) -> str:
        name = _STORES[self.model, self.reuse]
        slot = call.slots.get(name)
        if slot is None or not 0 <= slot.step >= slot.first.step:
            return name
        if self.reuse == "blocks" and call.large.carries_text and self.model == "large":
            return "" if slot.text == call.large.encoder_shape(call.inputs) else f"{name} beside such a text"
        return ""

    def substitute(self) -> Action:
        return Small() if self.model == "small" else super().substitute()

    def run(self, call: Any) -> torch.Tensor:
        buffer = call.slots[_STORES[self.model, self.reuse]].buffer
        if self.reuse == "output":
            return torch.add(call.x, buffer)
        model = call.large if self.model == "large" else call.small
        if call.execute is None:
            return model.reusing(call.inputs, buffer)
        key = ("reuse", self.model, call.key)
        return call.execute(key, lambda inputs: model.reusing(inputs, buffer), call.inputs)


_STORES = {(model, reuse): f"{model}.{reuse}" for model in ("large", "small") for reuse in ("blocks", "output")}
