"""What an action is: data that says what may stand in for the full forward at a step, and how that is carried out."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, ClassVar, Literal

import msgspec
import torch

ReuseLevel = Literal["blocks", "output"]
ModelName = Literal["large", "small"]
Branches = Literal["cond", "both"]

#: Letter -> action, in the order in which they are defined.
ACTIONS: dict[str, type[Action]] = {}


@dataclasses.dataclass(frozen=True)
class Action:
    """One file of this folder each; ``letter`` is how a timeline shows it.

    ``missing`` and ``run`` are given a *call* (``vaccel.engine.call.Call``): one invocation of the model, with its
    inputs, the stores that the method declared, and the models of its part of the run.
    """

    letter: ClassVar[str] = "?"
    #: What a step that took it was, in words.
    about: ClassVar[str] = ""
    #: Whether every branch is computed by the large model, so that stores and signals are renewed.
    is_full: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        ACTIONS[cls.letter] = cls

    def missing(self, call: Any) -> str:
        """What it reuses that no earlier step of the run has left behind for such a call; "" if all is there."""
        return ""

    def substitute(self) -> Action:
        """What is computed in this action's place where something is missing."""
        return ACTIONS["F"]()

    def forwards(self, branches: int) -> tuple[tuple[ModelName, int], ...]:
        """The forwards that a step of so many branches makes where nothing is missing: (model, branch) of each.

        For whoever computes those of several runs in one batch; what is left out here is computed alone.
        """
        return ()

    def run(self, call: Any) -> torch.Tensor:
        """The model's output [rows, ...] for the call, computed or substituted."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The letter and the fields that differ from their defaults."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        return {"action": self.letter, **fields}


def from_json(data: dict[str, Any] | str) -> Action:
    """An action from ``Action.to_json`` or from its letter.  Raises ``ValueError`` for one that does not exist."""
    if not isinstance(data, (str, dict)):
        raise ValueError(f"an action must be a letter or an object, got {data!r:.60}")
    fields = {"action": data} if isinstance(data, str) else dict(data)
    letter = fields.pop("action", None)
    if not isinstance(letter, str) or letter not in ACTIONS:
        known = ", ".join(f"{k} ({v.__name__})" for k, v in ACTIONS.items())
        raise ValueError(f"unknown action {letter!r:.60}; known: {known}")
    declared = typing.get_type_hints(ACTIONS[letter])
    try:
        for name in [f.name for f in dataclasses.fields(ACTIONS[letter]) if f.name in fields]:
            if isinstance(fields[name], (str, int, float, bool)):  # weights are lists, and judged as such
                msgspec.convert(fields[name], declared[name])
        return ACTIONS[letter](**fields)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"action {letter!r}: {error}") from None
