"""A model as the engine calls it: in full, storing or reusing the residual of its blocks, on some of its rows.

And a call of one, with the stage of the run that it is made in.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import nn

from .. import ops
from . import Family
from .family import Inputs
from .views import BlockState, View, keeping_view, plain_view, resuming_view, reusing_view, storing_view

#: The name that our own hook on a transformer's root is registered under.
HOOK = "vaccel"
#: What peft's layers decide by when they are called.
ADAPTER_STATE = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")


class Model(Protocol):
    """What the engine needs of a model.

    ``described`` says whether the inside of it can be reached; latents have their channels along ``channel_axis`` and,
    where they are ``spatial``, rows and columns last.
    """

    described: bool
    channel_axis: int
    spatial: bool

    def latents(self, inputs: Any) -> torch.Tensor: ...
    def rows(self, inputs: Any, rows: slice | list[int]) -> Any: ...
    def full(self, inputs: Any) -> torch.Tensor: ...
    def expert(self, inputs: Any, number: int) -> torch.Tensor: ...
    def storing(self, inputs: Any, buffer: torch.Tensor) -> torch.Tensor: ...
    def reusing(self, inputs: Any, buffer: torch.Tensor) -> torch.Tensor: ...
    def keeping(self, inputs: Any, states: dict[int, BlockState]) -> torch.Tensor: ...
    def resuming(self, inputs: Any, after: int, states: dict[int, BlockState]) -> torch.Tensor: ...
    def guided(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor: ...
    def hidden_shape(self, inputs: Any) -> tuple[int, ...]: ...
    def encoder_shape(self, inputs: Any) -> tuple[int, ...] | None: ...
    def modulation(self, inputs: Any, projected: bool) -> torch.Tensor: ...
    def modulations(self, inputs: Any, timesteps: torch.Tensor, projected: bool) -> torch.Tensor | None: ...


@dataclasses.dataclass(slots=True)
class Stage:
    """The models of one part of a run (Wan 2.2 has two parts); caches never cross from one to the other."""

    index: int
    large: Model
    small: Model | None = None


@dataclasses.dataclass(slots=True)
class Call:
    """One invocation: its arguments, x (the noisy latents [rows, ...]), and which branches its rows are.

    ``branch`` 0 is the first call of a step (the conditional branch of two-call guidance), 1 the second.  With
    ``batched`` the rows are [unconditional; conditional].
    """

    stage: Stage
    branch: int
    inputs: Any
    x: torch.Tensor
    batched: bool = False

    @property
    def half(self) -> int:
        """First row of the conditional branch."""
        return len(self.x) // 2 if self.batched else 0


class Transformer:
    """A diffusers transformer with its family's description.

    ``original`` calls the model with whatever other hooks sit on it; views are called directly where there are none.
    ``experts`` are the models that ``expert`` chooses from, where it stands for several.
    """

    described = True

    def __init__(self, model: nn.Module, family: Family, *, small: bool = False, compile: bool = False):
        self.model, self.family, self.is_small, self.compile = model, family, small, compile
        self.original: Callable[..., Any] = model if small else model.forward
        self.experts: tuple[Transformer, ...] = ()
        self._views: dict[Hashable, View] = {}
        self._warned = False

    @property
    def channel_axis(self) -> int:
        return self.family.channel_axis

    @property
    def spatial(self) -> bool:
        return self.family.spatial

    def latents(self, inputs: Inputs) -> torch.Tensor:
        return self.family.latents(self.model, inputs)

    def rows(self, inputs: Inputs, rows: slice | list[int]) -> Inputs:
        return self.family.rows(inputs, rows)

    def hidden_shape(self, inputs: Inputs) -> tuple[int, ...]:
        return self.family.hidden_shape(self.model, inputs)

    def encoder_shape(self, inputs: Inputs) -> tuple[int, ...] | None:
        return self.family.encoder_shape(self.model, inputs)

    def modulation(self, inputs: Inputs, projected: bool) -> torch.Tensor:
        self._onload()
        return self.family.modulation(self.model, inputs, projected)

    def modulations(self, inputs: Inputs, timesteps: torch.Tensor, projected: bool) -> torch.Tensor | None:
        self._onload()
        return self.family.modulations(self.model, inputs, timesteps, projected)

    def guided(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
        return self.family.guided(cond, uncond, scale, out)

    def _onload(self) -> None:
        """Brings offloaded weights to where the inputs are, as the model's own call will."""
        offload = getattr(self.model, "_hf_hook", None)
        if offload is not None:
            offload.pre_forward(self.model)

    def full(self, inputs: Inputs) -> torch.Tensor:
        if self.compile:
            return self._call("plain", plain_view, inputs)
        return self._prediction(inputs, self.original(**(self._mapped(inputs) if self.is_small else inputs)))

    def expert(self, inputs: Inputs, number: int) -> torch.Tensor:
        """A forward by the weights of expert ``number``.  Raises ``ValueError`` where there is no such expert."""
        if number >= len(self.experts):
            raise ValueError(f"the method asks for expert {number} of {len(self.experts)}")
        return self.experts[number].full(inputs)

    def storing(self, inputs: Inputs, buffer: torch.Tensor) -> torch.Tensor:
        return self._call("storing", storing_view, inputs, buffer)

    def reusing(self, inputs: Inputs, buffer: torch.Tensor) -> torch.Tensor:
        return self._call("reusing", reusing_view, self.family.reusing_inputs(self.model, inputs), buffer)

    def keeping(self, inputs: Inputs, states: dict[int, BlockState]) -> torch.Tensor:
        """A forward that keeps the states after some blocks."""
        numbers = tuple(states)
        return self._call(
            ("keeping", numbers), lambda m, family: keeping_view(m, family, numbers), inputs, None, states
        )

    def resuming(self, inputs: Inputs, after: int, states: dict[int, BlockState]) -> torch.Tensor:
        """What the blocks behind ``after`` and the head make of the state kept there."""
        numbers = tuple(states)

        def make(model: nn.Module, family: Family) -> View:
            return resuming_view(model, family, after, numbers)

        return self._call(("resuming", after, numbers), make, inputs, None, states)

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return len(getattr(self.model, self.family.blocks))

    def _mapped(self, inputs: Inputs) -> Inputs:
        return self.family.small_inputs(self.model, inputs)

    def _prediction(self, inputs: Inputs, outputs: tuple) -> torch.Tensor:
        return self.family.prediction(self.model, inputs, outputs[0])

    def _call(
        self,
        name: Hashable,
        make: Callable,
        inputs: Inputs,
        buffer: torch.Tensor | None = None,
        states: dict[int, BlockState] | None = None,
    ) -> torch.Tensor:
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = make(self.model, self.family)
            if self.compile:
                view.compile()
        if buffer is not None:
            view.set_buffer(buffer)
        if states is not None:
            view.set_states(states)
        if self.is_small:
            inputs = self._mapped(inputs)
        if self._bare():
            return self._prediction(inputs, view.call(**inputs))
        if self.compile and not self._warned:
            self._warned = True
            warnings.warn("vaccel: other hooks sit on the transformer (offload?): running it uncompiled", stacklevel=3)
        with view.swapped_in():
            return self._prediction(inputs, self.original(**inputs))

    def state(self) -> Hashable:
        """Equal as long as every weight stands where it stood and every adapter is used and scaled as it was."""
        adapted = [m for m in self.model.modules() if isinstance(getattr(m, "scaling", None), dict)]
        adapters = [[getattr(m, name, None) for name in ADAPTER_STATE] for m in adapted]
        others = [expert.state() for expert in self.experts if expert is not self]
        return tuple(p.data_ptr() for p in self.model.parameters()), repr(adapters), *others

    def uncapturable(self) -> str | None:
        """Why no CUDA graph of it can be captured, as far as can be told before trying."""
        for module in self.model.modules():
            if "_hf_hook" in module.__dict__:
                return "accelerate's offload moves its weights"
            registry = module.__dict__.get("_diffusers_hook")
            foreign = [name for name in registry.hooks if name != HOOK] if registry is not None else []
            if foreign:
                return f"other hooks sit on {type(module).__name__} ({', '.join(foreign)})"
        return None

    def _bare(self) -> bool:
        """Whether nothing but the model's own forward lies below."""
        if self.is_small:
            return "forward" not in self.model.__dict__
        plain = getattr(self.original, "__func__", None) is type(self.model).forward
        return plain and "_hf_hook" not in self.model.__dict__


class PlainCallable:
    """A callable ``(x, t, condition) -> output`` of a hand-written loop: nothing inside it can be reached."""

    described = False
    channel_axis = 1
    spatial = True

    def __init__(self, function: Callable[..., torch.Tensor]):
        self.function = function

    def latents(self, inputs: tuple) -> torch.Tensor:
        return inputs[0]

    def full(self, inputs: tuple) -> torch.Tensor:
        return self.function(*inputs)

    def guided(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
        return ops.cfg_combine(cond, uncond, scale, out)
