"""The vocabulary of a step: what may stand in for the full forward.  A method picks one, the engine carries it out."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

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


@dataclasses.dataclass(frozen=True)
class Full(Action):
    """Every branch through the large model, caches refreshed."""

    letter: ClassVar[str] = "F"


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


ACTIONS: dict[str, type[Action]] = {
    cls.letter: cls for cls in (Full, Small, Rescale, Residual, Output, Guidance, Resume, Expert)
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
    except TypeError as error:
        raise ValueError(f"action {letter!r}: {error}") from None
