"""The vocabulary of a step: what may stand in for the full forward.  A method picks one, the engine carries it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

ReuseLevel = Literal["blocks", "output"]
Model = Literal["large", "small"]
Branches = Literal["cond", "both"]


@dataclasses.dataclass(frozen=True)
class Action:
    """One of the classes below; ``letter`` is how a timeline shows it."""

    letter: ClassVar[str] = "?"

    def to_json(self) -> dict[str, Any]:
        """The letter and the fields that differ from their defaults."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        return {"action": self.letter, **fields}


class Weights:
    """What a forecast takes of each remembered velocity: [K, bands, channels], newest first, fp32.

    One band: of the velocity.  Two: of its low spatial frequencies and of the others.  One channel: of all alike.
    Compares and hashes by value.  Raises ``ValueError`` for another shape, or for what is no number.
    """

    __slots__ = ("_hash", "values")

    def __init__(self, values: Sequence[Any] | np.ndarray):
        values = np.array(values, dtype=np.float32)
        if values.ndim != 3 or 0 in values.shape or values.shape[1] > 2 or not np.isfinite(values).all():
            raise ValueError(f"weights must be finite, [K, 1 or 2 bands, channels], got shape {values.shape}")
        values.flags.writeable = False
        self.values, self._hash = values, hash((values.shape, values.tobytes()))

    @classmethod
    def plain(cls, *weights: float) -> Weights:
        """One number a remembered velocity."""
        return cls([[[w]] for w in weights])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Weights({self.values.tolist()})"


def _as_weights(action: Action, name: str) -> None:
    """Turns the lists of a JSON into weights."""
    value = getattr(action, name)
    if value is not None and not isinstance(value, Weights):
        object.__setattr__(action, name, Weights(value))


def _weighed_json(action: Action, name: str) -> dict[str, Any]:
    weights = getattr(action, name)
    return {"action": action.letter} | ({} if weights is None else {name: weights.values.tolist()})


@dataclasses.dataclass(frozen=True)
class Full(Action):
    """Every branch through the large model, caches refreshed.

    With ``correction`` the solver is given this combination of the remembered velocities instead, the one just
    computed first among them: it pays back what forecasts before it were off by.
    """

    letter: ClassVar[str] = "F"
    correction: Weights | None = None

    def __post_init__(self) -> None:
        _as_weights(self, "correction")

    def to_json(self) -> dict[str, Any]:
        return _weighed_json(self, "correction")


@dataclasses.dataclass(frozen=True)
class Small(Action):
    """Every branch through the small model."""

    letter: ClassVar[str] = "s"


@dataclasses.dataclass(frozen=True)
class Rescale(Action):
    """Direction from the cached residual, length from elsewhere: m (x + r) / norm(x + r) (seed 000, eq. 3 and 4).

    ``magnitude`` is "small" (the norm of the small model's output), "cached" (none: x + r as it is) or "projection"
    (x + r scaled onto the last large output).  The small model runs in each of them: its output is what the adaptive
    rule watches.  With ``cfg_reuse`` it runs for the conditional branch alone and serves both.
    """

    letter: ClassVar[str] = "m"
    magnitude: Literal["small", "cached", "projection"] = "small"
    cfg_reuse: bool = True


@dataclasses.dataclass(frozen=True)
class Residual(Action):
    """x + cached residual: of the block stack (embeddings and head computed anew) or of the whole output."""

    letter: ClassVar[str] = "r"
    reuse: ReuseLevel = "blocks"
    model: Model = "large"


@dataclasses.dataclass(frozen=True)
class Output(Action):
    """The last output again, of every branch."""

    letter: ClassVar[str] = "o"


@dataclasses.dataclass(frozen=True)
class Guidance(Action):
    """The conditional branch alone; the unconditional one is it plus the cached delta u - c (seed 002)."""

    letter: ClassVar[str] = "g"


@dataclasses.dataclass(frozen=True)
class Resume(Action):
    """The cached state after block ``block`` goes through the blocks behind it and the head (seed 002).

    With ``branches="cond"`` that is the conditional branch, and the other is it plus the cached delta; with "both"
    each branch goes on from its own state.
    """

    letter: ClassVar[str] = "b"
    block: int = 0
    branches: Branches = "cond"


@dataclasses.dataclass(frozen=True)
class Expert(Action):
    """The ``expert``-th expert's weights, conditional branch alone and no guidance: it is distilled (seed 004)."""

    letter: ClassVar[str] = "e"
    expert: int = 0


@dataclasses.dataclass(frozen=True)
class Forecast(Action):
    """A linear combination of the velocities that were computed last, of each branch alike.

    Without ``weights``, as in a timeline, a schedule puts those of the damped line through the last two in their place.
    """

    letter: ClassVar[str] = "p"
    weights: Weights | None = None

    def __post_init__(self) -> None:
        _as_weights(self, "weights")

    def to_json(self) -> dict[str, Any]:
        return _weighed_json(self, "weights")


ACTIONS: dict[str, type[Action]] = {
    cls.letter: cls for cls in (Full, Small, Rescale, Residual, Output, Guidance, Resume, Expert, Forecast)
}


def from_json(data: dict[str, Any] | str) -> Action:
    """An action from ``Action.to_json`` or from its letter.  Raises ``ValueError`` for one that does not exist."""
    fields = {"action": data} if isinstance(data, str) else dict(data)
    letter = fields.pop("action", None)
    if letter not in ACTIONS:
        known = ", ".join(f"{k} ({v.__name__})" for k, v in ACTIONS.items())
        raise ValueError(f"unknown action {letter!r}; known: {known}")
    try:
        return ACTIONS[letter](**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"action {letter!r}: {error}") from None
