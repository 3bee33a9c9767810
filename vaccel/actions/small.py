"""Small, "s": every branch through the small model (SRDiffusion, arXiv 2505.19151)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from .base import Action, ModelName


@dataclasses.dataclass(frozen=True)
class Small(Action):
    """Every branch through the small model."""

    letter: ClassVar[str] = "s"
    about: ClassVar[str] = "computed by the small model"

    def forwards(self, branches: int) -> tuple[tuple[ModelName, int], ...]:
        return tuple(("small", branch) for branch in range(branches))

    def run(self, call: Any) -> torch.Tensor:
        return call.compute_small()
