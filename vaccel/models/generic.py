"""Any denoiser, seen from outside: any module that a sampling loop calls once or more a step.

Nothing is known of its inside.  What it is given and what it answers are trees of tensors (``vaccel.models.layout``),
and which of them are noisy is read off the shapes of its first answer.  A described model (``transformer.py``) is this
and its blocks.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn

from .. import ops
from ..planning.channels import Channels, pieces_of
from . import layout
from .channel_axis import axis_of, config_of
from .compiling import Compiler
from .family import Family, Inputs
from .layout import Layout
from .locks import lock_of
from .offload import at_root, led
from .standing import listener, standing
from .structures import tensors_of
from .views import View, plain_view

_numbers = itertools.count()


def hooked(model: nn.Module) -> bool:
    """Whether more than the model's own forward lies below a call: offload, context parallel, a user's hook."""
    own = model.__dict__
    return bool("forward" in own or "_hf_hook" in own or own["_forward_hooks"] or own["_forward_pre_hooks"])


class Generic:
    """A denoiser at its root.

    ``original`` calls the model with whatever hooks sit on it.  ``experts`` are the models that ``expert`` chooses
    from, where it stands for several.  ``compiler`` is what compiles its views, None where nothing does.
    """

    described = False
    depth = 0
    carries_text = False

    def __init__(self, model: nn.Module, family: Family, *, small: bool = False, compiler: Compiler | None = None):
        self.model, self.family, self.is_small, self.compiler = model, family, small, compiler
        # The module's own call, past any scope that it would ask for.
        self.original: Callable[..., Any] = functools.partial(nn.Module.__call__, model)
        self.experts: tuple[Generic, ...] = ()
        self._number = next(_numbers)
        #: Models of the same class in other parts of the run, whose answers lie as its own do.
        self.others: tuple[Generic, ...] = ()
        self._views: dict[Hashable, View] = {}
        #: How the answers of the current kind of call lie.
        self.layout: Layout | None = family.layout(model)
        if self.layout is not None and not self.layout.learnt:  # the family knows it without looking
            self.latents = self.layout.x
        self._layouts: list[Layout] = []
        #: What was computed to see how answers lie, with its arguments, until ``full`` gives it.
        self.looked: tuple[Inputs, Any] | None = None
        # What a family leaves as it is costs nothing.
        self._adapts = small and type(family).small_inputs is not Family.small_inputs
        self._warned = False
        self._look()
        self._lock = lock_of(model)

    def channels(self, x: torch.Tensor) -> Channels:
        """Where the channels of latents [rows, ...] lie; of each tensor where several are packed."""
        if self.layout is not None and self.layout.part_shapes:
            shapes = [(shape, self._axis((1, *shape))) for shape in self.layout.part_shapes]
            return Channels(1, pieces_of(shapes))
        return Channels(self._axis(x.shape))

    def _axis(self, shape: Sequence[int]) -> int:
        return axis_of(shape, config_of(self.model)) if type(self.family) is Family else self.family.channel_axis

    def inside(self, device: torch.device) -> Hashable:
        """What the hidden states of a call are like beside its latents: whose they are, and what they are computed in.

        Buffers of an earlier run fit where this is the same.
        """
        weight, kind = next(self.model.parameters(), None), device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return self._number, None if weight is None else weight.dtype, cast

    @property
    def spatial(self) -> bool:
        return self.family.spatial and (self.layout is None or self.layout.kind in ("single", "samples"))

    def rows(self, inputs: Inputs, rows: slice | list[int]) -> Inputs:
        return self.family.rows(inputs, rows, self.layout)

    def guided(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
        return self.family.guided(cond, uncond, scale, out)

    def modulation(self, inputs: Inputs, projected: bool) -> torch.Tensor:
        with at_root(self.model):
            return self.family.modulation(self.model, inputs, projected)

    def modulations(self, inputs: Inputs, timesteps: torch.Tensor, projected: bool) -> torch.Tensor | None:
        with at_root(self.model):
            return self.family.modulations(self.model, inputs, timesteps, projected)

    # -- what goes in and what comes out -----------------------------------------------------------------------------

    def latents(self, inputs: Inputs) -> torch.Tensor:
        """The noisy part of a call's input, [rows, ...].

        The first call of a kind is computed, to see how its answer lies; ``full`` then gives that answer.  Raises
        ``ValueError`` where the answer has no tensor of an input's shape.
        """
        kept = self.layout
        if kept is None or not kept.fits(inputs):
            kept = self.layout = self._layout_for(inputs)
        return kept.x(inputs)

    def _layout_for(self, inputs: Inputs) -> Layout:
        for known in self._layouts:
            if known.fits(inputs):
                return known
        if self.layout is not None and (fewer := self.layout.halved(inputs)) is not None:
            return fewer
        for other in self.others:
            if other.layout is not None and (lent := other.layout.lent(inputs)) is not None:
                return lent
        with torch.no_grad():
            answer = self._answer(inputs)
        made = self._learnt(inputs, answer)
        self.looked = inputs, answer
        return made

    def _learnt(self, inputs: Inputs, answer: Any) -> Layout:
        made = layout.found(inputs, answer)
        if made is None:
            shapes = [tuple(t.shape) for t in tensors_of(answer)]
            given = {k: tuple(v.shape) for k, v in inputs.items() if isinstance(v, torch.Tensor)}
            raise ValueError(
                f"{type(self.model).__name__} answers with {shapes or type(answer).__name__}, and none of that has the "
                f"shape of what it was given ({given}): nothing can stand in for it"
            )
        made.pack(answer, inputs)
        self._layouts = [made, *self._layouts[:7]]
        return made

    def full(self, inputs: Inputs) -> torch.Tensor:
        kept, looked = self.layout, self.looked
        if self._quick and looked is None and kept is not None and kept.single:
            answer = self.original(**inputs)
            alone = type(answer) is tuple and len(answer) == 1  # Flux 2 gives keys and values beside it, at times
            return answer[0] if alone and not kept.cuts else kept.pack(answer, inputs)
        self.looked = None
        if looked is not None and looked[0] is inputs:
            return kept.pack(looked[1], inputs)
        answer = self._answer(self.family.small_inputs(self.model, inputs) if self.is_small else inputs)
        if kept is None or (self.is_small and not kept.fits(inputs)):
            kept = self.layout = self._learnt(inputs, answer)
        return kept.pack(answer, inputs)

    def _answer(self, inputs: Inputs) -> Any:
        """The model's own answer."""
        if self.compiler is not None:
            return self._through("plain", plain_view, inputs)
        if self.bare:
            return self.original(**inputs)
        with self._lock:
            return self.original(**inputs)

    def outright(self, inputs: Inputs) -> Any:
        """The model's own answer to such a call, by no view and uncompiled: to compare with."""
        with self._lock:
            return self.original(**(self.family.small_inputs(self.model, inputs) if self.is_small else inputs))

    def expert(self, inputs: Inputs, number: int) -> torch.Tensor:
        """A forward by the weights of expert ``number``.  Raises ``ValueError`` where there is no such expert."""
        if number >= len(self.experts):
            raise ValueError(f"the method asks for expert {number} of {len(self.experts)}")
        return self.experts[number].full(inputs)

    def recording(self, inputs: Inputs, residual: None, states: dict) -> torch.Tensor:
        """As ``full``: what is inside cannot be asked for."""
        return self.full(inputs)

    # -- views -------------------------------------------------------------------------------------------------------

    def compile_by(self, compiler: Compiler | None) -> None:
        """From now on views are compiled by this; those that were made otherwise are made anew."""
        if compiler is not self.compiler:
            self.compiler, self._views = compiler, {}

    def refresh(self) -> None:
        """Drops views of what has been replaced since: a LoRA at the root, a head, a block.  Called as a run opens."""
        with self._lock:  # in which another run may have other blocks
            for name in [name for name, view in self._views.items() if view.stale()]:
                del self._views[name]
        self.looked = None
        self._look()

    def _through(
        self, name: Hashable, make: Callable, inputs: Inputs, prepare: Callable | None = None, *, eagerly: bool = False
    ) -> Any:
        """The answer of a view, made when it is first asked for.

        Args:
            prepare: tells the view what this call works with.
            eagerly: not compiled, since the call makes its buffers itself.
        """
        view = self._views.get(name)
        if view is None:
            with self._lock:
                view = self._views[name] = make(self.model, self.family)
            if self.compiler is not None:
                view.compile(self.compiler)
        if prepare is not None:
            prepare(view)
        if self.bare:
            if eagerly or self.compiler is None:
                return view.eager(**inputs)
            return self._compiled(view, inputs)
        if self.compiler is not None and not self._warned:
            self._warned = True
            warnings.warn("vaccel: other hooks sit on the transformer (offload?): running it uncompiled", stacklevel=3)
        with self._lock, led(self.family.block_list(self.model), view.called), view.swapped_in():
            return self.original(**inputs)

    def _compiled(self, view: View, inputs: Inputs) -> Any:
        """A compiled view's outputs; where the compiler has given up on it, those of the view as it is."""
        try:
            return view.call(**inputs)
        except Exception as error:
            if type(error).__name__ != "FailOnRecompileLimitHit":
                raise
            warnings.warn("vaccel: torch.compile's recompile limit is reached: running uncompiled", stacklevel=3)
            view.call = view.eager
            return view.call(**inputs)

    def state(self) -> Hashable:
        """Equal as long as what a captured step has fixed of the model stands as it stood."""
        with self._lock:
            stands = standing(self.model)
        return stands, *(expert.state() for expert in self.experts if expert is not self)

    def uncapturable(self) -> str | None:
        """Why no CUDA graph of it can be captured, as far as can be seen before trying."""
        if self.layout is not None and self.layout.has_rest:
            return f"a {type(self.model).__name__} answers with more than its prediction"
        for module in self.model.modules():
            if "_hf_hook" in module.__dict__:
                return "accelerate's offload moves its weights"
            registry = module.__dict__.get("_diffusers_hook")
            if registry is not None and registry.hooks:
                return f"other hooks sit on {type(module).__name__} ({', '.join(registry.hooks)})"
        if (name := listener(self.model)) is not None:
            return f"a forward hook sits on a {name}, and a captured step would not call it"
        return None

    def _look(self) -> None:
        """Looks whether more than the model's own forward lies below a call."""
        self.bare = not hooked(self.model)
        self._quick = self.bare and self.compiler is None and not self._adapts


class PlainCallable:
    """A callable ``(x, t, condition) -> output`` of a hand-written loop: nothing inside it can be reached."""

    described = False
    depth = 0
    spatial = True
    carries_text = False

    def __init__(self, function: Callable[..., torch.Tensor], axis: int | None = None):
        self.function, self.axis = function, axis

    def channels(self, x: torch.Tensor) -> Channels:
        return Channels(axis_of(x.shape) if self.axis is None else self.axis)

    def latents(self, inputs: tuple) -> torch.Tensor:
        return inputs[0]

    def recording(self, inputs: tuple, residual: None, states: dict) -> torch.Tensor:
        """As ``full``: what is inside cannot be asked for."""
        return self.full(inputs)

    def full(self, inputs: tuple) -> torch.Tensor:
        return self.function(*inputs)

    def guided(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
        return ops.cfg_combine(cond, uncond, scale, out)
