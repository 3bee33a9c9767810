"""The rows of a forward: a batch of conditions taken apart and put together, several tensors packed as one.

ComfyUI's forwards take latents [conditions x batch, channels, ...], with what they are conditioned on behind the
latents' own channels where a model wants that, or a list of such (video and sound).  They answer with as many rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from ...planning.channels import Channels

Tensors = torch.Tensor | list[torch.Tensor] | tuple[torch.Tensor, ...]


def listed(given: Any) -> list[torch.Tensor] | None:
    """The tensors of a forward's input or answer; None for anything else."""
    found = [given] if isinstance(given, torch.Tensor) else list(given) if isinstance(given, (list, tuple)) else []
    good = found and all(isinstance(t, torch.Tensor) and t.ndim > 1 and t.is_floating_point() for t in found)
    return found if good and len({len(t) for t in found}) == 1 else None


@dataclasses.dataclass(frozen=True)
class Form:
    """How answers lie: ``shapes`` of a row of each tensor, and what holds them (None for a tensor alone)."""

    shapes: tuple[tuple[int, ...], ...]
    holder: type | None = None

    @classmethod
    def of(cls, answer: Any, given: list[torch.Tensor]) -> Form | None:
        """The form of an answer to ``given``; None where it has no tensor for each of those, of its rows and places."""
        tensors = listed(answer)
        if tensors is None or len(tensors) != len(given):
            return None
        for out, x in zip(tensors, given, strict=True):
            if len(out) != len(x) or out.shape[2:] != x.shape[2:] or out.shape[1] > x.shape[1]:
                return None
        return cls(tuple(tuple(t.shape[1:]) for t in tensors), None if answer is tensors[0] else type(answer))

    def latents(self, given: list[torch.Tensor]) -> torch.Tensor:
        """The noisy latents of what a forward is given, [rows, ...]."""
        return self.packed([x[:, : shape[0]] for x, shape in zip(given, self.shapes, strict=True)])

    def packed(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """One tensor of all: itself where it is alone, else [rows, 1, elements]."""
        return tensors[0] if len(tensors) == 1 else torch.cat([t.flatten(1) for t in tensors], 1).unsqueeze(1)

    def answer(self, packed: torch.Tensor) -> Any:
        """What the forward would have answered with."""
        if len(self.shapes) == 1:
            parts = [packed]
        else:
            sizes = [math.prod(shape) for shape in self.shapes]
            parts = [p.view(-1, *s) for p, s in zip(packed[:, 0].split(sizes, 1), self.shapes, strict=True)]
        return parts[0] if self.holder is None else tuple(parts) if self.holder is tuple else list(parts)


class Forward:
    """One forward of a batch of conditions, made when the first of them asks for its rows."""

    def __init__(self, make: Callable[[], Any], given: list[torch.Tensor]):
        self.make, self.given = make, given
        self.made = False
        self._answer: Any = None
        self._packed: tuple[Form, torch.Tensor] | None = None

    def answer(self) -> Any:
        """The model's own answer."""
        if not self.made:
            self._answer, self.made = self.make(), True
        return self._answer

    def rows(self, form: Form, rows: slice) -> torch.Tensor:
        """Those of one condition, [batch, ...].  Raises ``ValueError`` for an answer of another form."""
        if self._packed is None:
            tensors = listed(self.answer())
            if tensors is None or tuple(tuple(t.shape[1:]) for t in tensors) != form.shapes:
                raise ValueError("vaccel: the model's answers have changed their shape in the middle of a run")
            self._packed = form, form.packed(tensors)
        return self._packed[1][rows]


class AtOutput:
    """A network as the engine sees it: what it is asked for are rows of a forward."""

    described = False
    depth = 0
    spatial = True
    carries_text = False

    def channels(self, x: torch.Tensor) -> Channels:
        return Channels(1)

    def latents(self, inputs: Any) -> torch.Tensor:
        return inputs.x

    def full(self, inputs: Rows) -> torch.Tensor:
        return inputs.forward.rows(inputs.form, inputs.rows)

    def recording(self, inputs: Rows, residual: None, states: dict) -> torch.Tensor:
        """As ``full``: what is inside cannot be asked for."""
        return self.full(inputs)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The part of a forward that belongs to one condition."""

    forward: Forward
    form: Form
    rows: slice
    x: torch.Tensor
