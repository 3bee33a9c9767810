"""Full, "F": every branch through the large model."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from .base import Action, ModelName
from .forecast import as_weights, weights_json
from .weights import Weights


@dataclasses.dataclass(frozen=True)
class Full(Action):
    """Every branch through the large model, stores renewed.

    With ``correction`` the solver is given this combination of the remembered velocities instead, the one just
    computed first among them: it pays back what forecasts before it were off by.
    """

    letter: ClassVar[str] = "F"
    about: ClassVar[str] = "computed in full by the large model"
    is_full: ClassVar[bool] = True
    correction: Weights | None = None

    def __post_init__(self) -> None:
        if self.correction is not None:
            as_weights(self, "correction")

    def forwards(self, branches: int) -> tuple[tuple[ModelName, int], ...]:
        return tuple(("large", branch) for branch in range(branches))

    def run(self, call: Any) -> torch.Tensor:
        output = call.compute()
        if self.correction is not None:
            history = call.slots["large.velocities"]
            if history.known() >= self.correction.count:
                return history.forecast(call, self.correction)
        return output

    def to_json(self) -> dict[str, Any]:
        return weights_json(self, "correction")
