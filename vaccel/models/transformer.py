"""A model as the engine calls it: in full, storing or reusing the residual of its blocks, on some of its rows.

And a call of one, with the stage of the run that it is made in.
"""

from __future__ import annotations

import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn

from .. import ops
from ..cache.block_states import BlockState
from .family import Family, Inputs
from .views import View, plain_view, recording_view, resuming_view, reusing_view

#: What peft's layers decide by when they are called.
ADAPTER_STATE = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")


_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def lock_of(model: nn.Module) -> threading.RLock:
    """One for every module: where hooks sit on it, its blocks are exchanged for the length of a call."""
    return _locks.setdefault(model, threading.RLock())


def hooked(model: nn.Module) -> bool:
    """Whether more than the model's own forward lies below a call: offload, context parallel, a user's hook."""
    own = model.__dict__
    return bool("forward" in own or "_hf_hook" in own or own["_forward_hooks"] or own["_forward_pre_hooks"])


class Transformer:
    """A diffusers transformer with its family's description.

    ``original`` calls the model with whatever hooks sit on it; views are called directly where there are none.
    ``experts`` are the models that ``expert`` chooses from, where it stands for several.
    """

    described = True

    def __init__(self, model: nn.Module, family: Family, *, small: bool = False, compile: bool = False):
        self.model, self.family, self.is_small, self.compile = model, family, small, compile
        # The module's own call, past any scope that it would ask for.
        self.original: Callable[..., Any] = functools.partial(nn.Module.__call__, model)
        self.experts: tuple[Transformer, ...] = ()
        #: The noisy part of a call's input, [rows, ...].
        self.latents: Callable[[Inputs], torch.Tensor] = functools.partial(family.latents, model)
        self._views: dict[Hashable, View] = {}
        #: Whether text goes through the blocks beside the hidden states.
        self.carries_text = family.returns != "hidden"
        # What a family leaves as it is costs nothing.
        self._cuts = type(family).prediction is not Family.prediction
        self._reuses_other = type(family).reusing_inputs is not Family.reusing_inputs
        self.bare = self._bare()
        self._warned = False
        self._lock = lock_of(model)

    @property
    def channel_axis(self) -> int:
        return self.family.channel_axis

    @property
    def spatial(self) -> bool:
        return self.family.spatial

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
        given = self.family.small_inputs(self.model, inputs) if self.is_small else inputs
        if self.bare:
            output = self.original(**given)[0]
        else:
            with self._lock:
                output = self.original(**given)[0]
        return self.family.prediction(self.model, inputs, output) if self._cuts else output

    def expert(self, inputs: Inputs, number: int) -> torch.Tensor:
        """A forward by the weights of expert ``number``.  Raises ``ValueError`` where there is no such expert."""
        if number >= len(self.experts):
            raise ValueError(f"the method asks for expert {number} of {len(self.experts)}")
        return self.experts[number].full(inputs)

    def recording(self, inputs: Inputs, residual: torch.Tensor | None, states: dict[int, BlockState]) -> torch.Tensor:
        """A forward that leaves the residual of its blocks and the states after some of them behind, where asked to."""
        numbers, stores = tuple(states), residual is not None
        if not numbers and not stores:
            return self.full(inputs)
        view = self._views.get(("recording", numbers, stores))
        if view is not None and self.bare and not self._cuts and not self.is_small:
            if stores:
                for block in view.buffered:
                    block.__dict__["buffer"] = residual
            if numbers:
                view.set_states(states)
            return view.call(**inputs)[0]

        def make(model: nn.Module, family: Family) -> View:
            return recording_view(model, family, numbers, stores)

        return self._call(("recording", numbers, stores), make, inputs, residual, states or None)

    def reusing(self, inputs: Inputs, buffer: torch.Tensor) -> torch.Tensor:
        """Embeddings and head, with the residual in ``buffer`` in the blocks' place."""
        if self._reuses_other:
            inputs = self.family.reusing_inputs(self.model, inputs)
        view = self._views.get("reusing")
        if view is None or not self.bare or self.is_small or self._cuts:
            return self._call("reusing", reusing_view, inputs, buffer)
        for block in view.buffered:
            block.__dict__["buffer"] = buffer
        return view.call(**inputs)[0]

    def resuming(self, inputs: Inputs, after: int, states: dict[int, BlockState]) -> torch.Tensor:
        """What the blocks behind ``after`` and the head make of the state kept there."""
        numbers = tuple(states)
        view = self._views.get(("resuming", after, numbers))
        if view is not None and self.bare and not self._cuts and not self.is_small:
            view.set_states(states)
            return view.call(**inputs)[0]

        def make(model: nn.Module, family: Family) -> View:
            return resuming_view(model, family, after, numbers)

        return self._call(("resuming", after, numbers), make, inputs, None, states)

    def refresh(self) -> None:
        """Drops views of what has been replaced since: a LoRA at the root, a head, a block.  Called as a run opens."""
        for name in [name for name, view in self._views.items() if view.stale()]:
            del self._views[name]
        self.bare = self._bare()

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return len(getattr(self.model, self.family.blocks))

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
            inputs = self.family.small_inputs(self.model, inputs)
        if self.bare:
            output = self._compiled(view, inputs)[0] if self.compile else view.call(**inputs)[0]
            return self.family.prediction(self.model, inputs, output) if self._cuts else output
        if self.compile and not self._warned:
            self._warned = True
            warnings.warn("vaccel: other hooks sit on the transformer (offload?): running it uncompiled", stacklevel=3)
        with self._lock, view.swapped_in():
            return self.family.prediction(self.model, inputs, self.original(**inputs)[0])

    def _compiled(self, view: View, inputs: Inputs) -> tuple:
        """A compiled view's outputs; where the compiler has given up on it, those of the view as it is."""
        try:
            return view.call(**inputs)
        except Exception as error:
            if type(error).__name__ != "FailOnRecompileLimitHit":
                raise
            warnings.warn("vaccel: torch.compile's recompile limit is reached: running uncompiled", stacklevel=3)
            view.call = view.module.forward
            return view.call(**inputs)

    def state(self) -> Hashable:
        """Equal as long as every weight stands where it stood and every adapter is used and scaled as it was."""
        adapted = [m for m in self.model.modules() if isinstance(getattr(m, "scaling", None), dict)]
        adapters = [[getattr(m, name, None) for name in ADAPTER_STATE] for m in adapted]
        others = [expert.state() for expert in self.experts if expert is not self]
        return tuple(p.data_ptr() for p in self.model.parameters()), repr(adapters), *others

    def uncapturable(self) -> str | None:
        """Why no CUDA graph of it can be captured, as far as can be seen before trying."""
        for module in self.model.modules():
            if "_hf_hook" in module.__dict__:
                return "accelerate's offload moves its weights"
            registry = module.__dict__.get("_diffusers_hook")
            if registry is not None and registry.hooks:
                return f"other hooks sit on {type(module).__name__} ({', '.join(registry.hooks)})"
        return None

    def _bare(self) -> bool:
        """Whether nothing but the model's own forward lies below."""
        return not hooked(self.model)


class PlainCallable:
    """A callable ``(x, t, condition) -> output`` of a hand-written loop: nothing inside it can be reached."""

    described = False
    channel_axis = 1
    spatial = True

    def __init__(self, function: Callable[..., torch.Tensor]):
        self.function = function

    def latents(self, inputs: tuple) -> torch.Tensor:
        return inputs[0]

    def recording(self, inputs: tuple, residual: None, states: dict) -> torch.Tensor:
        """As ``full``: what is inside cannot be asked for."""
        return self.full(inputs)

    def full(self, inputs: tuple) -> torch.Tensor:
        return self.function(*inputs)

    def guided(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
        return ops.cfg_combine(cond, uncond, scale, out)
