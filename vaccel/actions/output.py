"""Output, "o": the last output again (MixCache's step level, arXiv 2508.12691)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from .base import Action


@dataclasses.dataclass(frozen=True)
class Output(Action):
    """The last output again, of every branch."""

    letter: ClassVar[str] = "o"
    about: ClassVar[str] = "the last output again"

    def missing(self, call: Any) -> str:
        slot = call.slots.get("large.last")
        return "" if slot is not None and 0 <= slot.step >= slot.first.step else "large.last"

    def run(self, call: Any) -> torch.Tensor:
        return torch.clone(call.slots["large.last"].buffer)
