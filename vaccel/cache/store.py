"""What computed steps leave behind: a store says what, a slot holds it for one kind of call of one run.

A *store* is data that a method declares.  A *slot* is made when a run first sees a stage, a branch and a shape, and
belongs to that run; its buffer may have served earlier runs, so it counts for nothing until this run has written it.
Asking for a buffer never makes it valid, only a write does, and a write says of which step it is: a branch that has
missed a step which the first one was computed at has nothing to reuse.
"""

from __future__ import annotations

from typing import Any

import torch

#: Name -> store, in the order in which they are defined: what tests go through.
STORES: dict[str, type[Store]] = {}


class Store:
    """Base of the stores; subclasses are frozen dataclasses, one file each.

    Attributes:
        kind: what it holds; with the model's name before it, the key of its slots and of a memory plan.
        phase: when a computed call writes it: "forward" (inside the model's forward, by a view), "step" (in the step
            function, which may be captured as a CUDA graph), or "after" it.
        inside: whether it needs the inside of a described transformer.
        crosses: whether what it holds is about the latents alone, whichever model has predicted it: a branch then has
            one slot for all models of a run.
    """

    kind = ""
    phase = "step"
    inside = False
    crosses = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        STORES[cls.kind] = cls

    @property
    def model(self) -> str:
        """Whose computed steps write it: "large" or "small"."""
        return "large"

    @property
    def name(self) -> str:
        return f"{self.model}.{self.kind}"

    def slot(self, call: Any) -> Slot:
        """A fresh slot for calls like ``call``."""
        raise NotImplementedError

    def carried(self, call: Any, before: Any) -> Slot:
        """Of a store that ``crosses``: the slot for calls like ``call``, with what calls like ``before`` have left.

        Those are of another model, or the same branch beside another one in a batch.
        """
        raise NotImplementedError


class Slot:
    """What one kind of call has stored.

    Attributes:
        buffer: the tensor; None until the first write.
        step: the step it was last written at; -1 before the first write of this run.
        first: the first branch's slot of the same store, itself for the first branch.
    """

    __slots__ = ("buffer", "first", "key", "step")

    def __init__(self, name: str, call: Any):
        self.buffer: torch.Tensor | None = None
        self.step = -1
        self.key = (name, call.stage.index, call.branch)
        self.first = self if call.branch == 0 else call.first.slots[name]

    def ready(self) -> bool:
        """Whether it can be reused: written by this run, and not older than what the first branch has."""
        return self.step >= 0 and self.step >= self.first.step

    def write(self, call: Any, tensor: torch.Tensor) -> torch.Tensor:
        """Copies ``tensor`` in and returns it."""
        if self.buffer is None:
            self.buffer = call.buffers.like(self.key, tensor)
        self.buffer.copy_(tensor)
        self.step = call.run.index
        return tensor

    def begin(self) -> None:
        """A step begins."""

    def fill(self, call: Any, x: torch.Tensor, output: torch.Tensor) -> None:
        """Writes what the output for latents x leaves behind; in the step function, so that it may be captured."""

    def after(self, call: Any, output: torch.Tensor) -> None:
        """Writes what is left behind once the call is over."""
