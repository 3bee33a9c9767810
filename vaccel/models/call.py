"""What the engine needs of a model, and which models one part of a run has."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch

from ..planning.channels import Channels


class Model(Protocol):
    """What the engine needs of a model.

    ``described`` says whether the inside of it can be reached; latents have their channels where ``channels`` says and,
    where they are ``spatial``, rows and columns last.
    """

    described: bool
    spatial: bool

    def channels(self, x: torch.Tensor) -> Channels: ...
    def latents(self, inputs: Any) -> torch.Tensor: ...
    def rows(self, inputs: Any, rows: slice | list[int]) -> Any: ...
    def full(self, inputs: Any) -> torch.Tensor: ...
    def expert(self, inputs: Any, number: int) -> torch.Tensor: ...
    def recording(self, inputs: Any, residual: torch.Tensor | None, states: dict[int, Any]) -> torch.Tensor: ...
    def reusing(self, inputs: Any, buffer: torch.Tensor) -> torch.Tensor: ...
    def resuming(self, inputs: Any, after: int, states: dict[int, Any]) -> torch.Tensor: ...
    def guided(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor: ...
    def encoder_shape(self, inputs: Any) -> tuple[int, ...] | None: ...
    def modulation(self, inputs: Any, projected: bool) -> torch.Tensor: ...
    def modulations(self, inputs: Any, timesteps: torch.Tensor, projected: bool) -> torch.Tensor | None: ...


@dataclasses.dataclass(slots=True)
class Stage:
    """The models of one part of a run (Wan 2.2 has two parts); of what is stored, velocities alone go on across.

    ``time`` and ``condition`` are the names of the arguments that say when a call is, and what tells branches apart.
    """

    index: int
    large: Model
    small: Model | None = None
    time: str = "timestep"
    condition: str = "encoder_hidden_states"
