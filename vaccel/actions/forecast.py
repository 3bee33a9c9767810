"""Forecast, "p": a linear combination of the velocities that were computed last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from .base import Action
from .weights import Weights


@dataclasses.dataclass(frozen=True)
class Forecast(Action):
    """A linear combination of the velocities that were computed last, of each branch alike.

    Without ``weights``, as in a timeline, a schedule puts those of the damped line through the last two in their place.
    ``own`` are the weights of branches that were computed at other steps than the first one: (the call's number within
    the step, weights).  They are of the velocities that such a branch has itself.
    """

    letter: ClassVar[str] = "p"
    about: ClassVar[str] = "forecast from the velocities computed last"
    weights: Weights | None = None
    own: tuple[tuple[int, Weights], ...] = ()

    def __post_init__(self) -> None:
        if self.weights is not None:
            as_weights(self, "weights")
        if self.own:
            object.__setattr__(self, "own", tuple(_numbered(*each) for each in self.own))

    def missing(self, call: Any) -> str:
        weights, history = self.weights, call.slots["large.velocities"]
        if self.own and (own := self._own(call)) is not None:
            return "" if len(history.steps) >= own.count and history.newer() else f"{own.count} velocities of its own"
        known = history.same if history.at == len(call.run.computed) else history.known()
        return "" if known >= weights.count else f"{weights.count} velocities"

    def run(self, call: Any) -> torch.Tensor:
        weights = self.weights if not self.own else self._own(call) or self.weights
        return call.slots["large.velocities"].forecast(call, weights)

    def _own(self, call: Any) -> Weights | None:
        return next((weights for number, weights in self.own if number == call.number), None)

    def to_json(self) -> dict[str, Any]:
        own = [[number, weights.values.tolist()] for number, weights in self.own]
        return weights_json(self, "weights") | ({"own": own} if own else {})


def _numbered(number: int, weights: Any) -> tuple[int, Weights]:
    """An entry of ``own``, of a JSON too.  Raises ``ValueError`` for a number that is none of a later branch's."""
    if type(number) is not int or number < 1:
        raise ValueError(f"own weights are of a step's call number 1 or a later one, got {number!r:.60}")
    return number, weights if isinstance(weights, Weights) else Weights(weights)


def with_own(
    action: Forecast, call: Any, weights: Callable[[tuple[int, ...], int], Weights], most: int = 2
) -> Forecast | None:
    """The action with weights of its own for the branch of ``call``, which was computed at other steps than the run.

    None where the branch has no velocity that is as new as the newest of the run's: it is to be computed.

    Args:
        weights: (the computed steps, newest first; the step) -> the weights of its forecast.
        most: of so many velocities.
    """
    history = call.slots["large.velocities"]
    if not history.newer():
        return None
    own = weights(tuple(history.steps[:most]), call.run.index)
    return dataclasses.replace(action, own=(*action.own, (call.number, own)))


def as_weights(action: Action, name: str) -> None:
    """Turns the lists of a JSON into weights."""
    value = getattr(action, name)
    if not isinstance(value, Weights):
        object.__setattr__(action, name, Weights(value))


def weights_json(action: Action, name: str) -> dict[str, Any]:
    """An action's JSON where its one field is weights."""
    weights = getattr(action, name)
    return {"action": action.letter} | ({} if weights is None else {name: weights.values.tolist()})
