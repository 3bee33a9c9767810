"""Forecast, "p": a linear combination of the velocities that were computed last."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from .base import Action
from .weights import Weights


@dataclasses.dataclass(frozen=True)
class Forecast(Action):
    """A linear combination of the velocities that were computed last, of each branch alike.

    Without ``weights``, as in a timeline, a schedule puts those of the damped line through the last two in their place.
    """

    letter: ClassVar[str] = "p"
    weights: Weights | None = None

    def __post_init__(self) -> None:
        if self.weights is not None:
            as_weights(self, "weights")

    def missing(self, call: Any) -> str:
        count, history = self.weights.count, call.slots["large.velocities"]
        known = len(history.steps) if call.branch == 0 else history.known()
        return "" if known >= count else f"{count} velocities"

    def run(self, call: Any) -> torch.Tensor:
        return call.slots["large.velocities"].forecast(call, self.weights)

    def to_json(self) -> dict[str, Any]:
        return weights_json(self, "weights")


def as_weights(action: Action, name: str) -> None:
    """Turns the lists of a JSON into weights."""
    value = getattr(action, name)
    if not isinstance(value, Weights):
        object.__setattr__(action, name, Weights(value))


def weights_json(action: Action, name: str) -> dict[str, Any]:
    """An action's JSON where its one field is weights."""
    weights = getattr(action, name)
    return {"action": action.letter} | ({} if weights is None else {name: weights.values.tolist()})
