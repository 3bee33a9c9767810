"""What a method may watch.  A signal sees every computed call and gives its value at the end of the step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

#: Name -> signal, in the order in which they are defined: what tests go through.
SIGNALS: dict[str, type[Signal]] = {}


class Signal:
    """Base of the signals; one object a run, one file each.

    Attributes:
        name: the attribute of ``Observation`` that carries its value.
        requires: signals whose values it is made of.
        early: whether it is known within the step, as soon as its first branch is done.
        any_step: whether other steps than those computed in full show it.
        guided: whether its value depends on the step's guidance scale.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[type[Signal], ...]] = ()
    early: ClassVar[bool] = False
    any_step: ClassVar[bool] = False
    guided: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        SIGNALS[cls.name] = cls

    def __init__(self, run: Any):
        self.run = run

    def computed(self, call: Any, output: torch.Tensor) -> None:
        """A call of a full step has given ``output``; what is needed of it is kept now."""

    def value(self, following: Any) -> Any:
        """Of the full step that is over, None where there is none; ``following`` is the next step's first call, None
        at the end of the run."""
        raise NotImplementedError
