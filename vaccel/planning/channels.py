"""Where the channels of latents lie: along an axis, or along one of each tensor that several are packed from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor [rows, *shape] among those that are packed as [rows, 1, elements], such as sound beside video.

    Attributes:
        start: its first element.
        shape: of a row.
        axis: which axis of [rows, *shape] counts channels.
    """

    start: int
    shape: tuple[int, ...]
    axis: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        return self.shape[self.axis - 1]

    def of(self, packed: torch.Tensor) -> torch.Tensor:
        """The tensor [..., *shape] in a packed one [..., 1, elements], which it shares its memory with."""
        return packed[..., 0, self.start : self.start + self.elements].unflatten(-1, self.shape)


@dataclasses.dataclass(frozen=True)
class Channels:
    """The channels of latents [rows, ...]: along ``axis``; where there are ``pieces``, those of each in their order."""

    axis: int = 1
    pieces: tuple[Piece, ...] = ()

    def count(self, latents: torch.Tensor) -> int:
        """How many there are in latents [rows, ...]."""
        if self.pieces:
            return sum(piece.channels for piece in self.pieces)
        return latents.shape[self.axis] if latents.ndim > 1 else 1

    def still(self, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor | None:
        """Where latents [rows, ...] are not denoised: all channels are, bit for bit, what they were at the first step.

        None where all of them are, and where none seems to be: then what is denoised is not among what was seen.
        """
        same = torch.empty(first.shape, dtype=torch.bool, device=first.device)
        every = [self.tensors(t[None]) for t in (first, last, same)]
        for (before, axis), (after, _), (out, _) in zip(*every, strict=True):
            out.copy_((before == after).all(dim=axis, keepdim=True).expand_as(before))
        return same if bool(same.any()) and not bool(same.all()) else None

    def tensors(self, velocities: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
        """Every tensor [T, rows, ...] of trajectories [T, rows, ...], and which of its axes counts channels."""
        if self.pieces:
            return [(piece.of(velocities), piece.axis + 1) for piece in self.pieces]
        return [(velocities, self.axis + 1 if self.axis >= 0 else velocities.ndim + self.axis)]


def pieces_of(shapes: Iterable[tuple[Sequence[int], int]]) -> tuple[Piece, ...]:
    """The pieces that tensors of these (shape of a row, axis of its channels) make, packed one after the other."""
    found, start = [], 0
    for shape, axis in shapes:
        shape, axis = (tuple(shape), axis) if shape else ((1,), 1)
        found.append(Piece(start, shape, axis % (len(shape) + 1) or 1))
        start += found[-1].elements
    return tuple(found)
