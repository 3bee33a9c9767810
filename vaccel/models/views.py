"""A transformer seen with another block list: the same weights, the model's own forward, other blocks in its list.

A view is a shallow copy of the user's module with its own ``_modules`` dict, so nothing of the original changes and
the copy compiles like any module.  Where other hooks sit on the original (offload, context parallel), the view's
blocks are put into the original for the length of one call instead, so that those hooks see the call as always.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .. import ops
from ..cache.block_states import BlockState
from .family import Family

HOOK_ATTRIBUTES = ("forward", "_diffusers_hook", "_hf_hook", "_old_forward", "_compiled_call_impl")


class _Replacement(nn.Module):
    """Stands in a block list's place; finds hidden states and text whether a model passes them by name or position.

    Nobody hangs hooks on it, so it is called past ``nn.Module.__call__``.  What it reads and writes are plain
    attributes and no registered buffers: offload that moves the model while such a block is in it must not put a copy
    in their place.
    """

    def __init__(self, returns: str):
        super().__init__()
        self.returns = returns

    @staticmethod
    def entering(args: tuple, kwargs: dict) -> torch.Tensor:
        return args[0] if args else kwargs["hidden_states"]

    def result(self, hidden: torch.Tensor, args: tuple, kwargs: dict) -> Any:
        if self.returns == "hidden":
            return hidden
        encoder = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
        return (hidden, encoder) if self.returns == "hidden_encoder" else (encoder, hidden)


class _PassThrough(_Replacement):
    """The identity."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.result(self.entering(args, kwargs), args, kwargs)

    __call__ = forward


class _AddResidual(_Replacement):
    """Adds the cached residual of the block stack.  ``buffer`` is set before each call; it is the branch's own."""

    def __init__(self, returns: str):
        super().__init__(returns)
        self.buffer: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = (args[0] if args else kwargs["hidden_states"]) + self.buffer
        return hidden if self.returns == "hidden" else self.result(hidden, args, kwargs)

    __call__ = forward


class _StoreEntry(_Replacement):
    """The first block; what enters it is copied into the buffer, where ``_StoreExit`` turns it into the residual."""

    def __init__(self, block: nn.Module, returns: str):
        super().__init__(returns)
        self.block = block
        self.buffer: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.buffer.copy_(args[0] if args else kwargs["hidden_states"])
        return self._modules["block"](*args, **kwargs)

    __call__ = forward


class _StoreExit(_Replacement):
    """The last block; the buffer becomes what leaves it minus what the buffer holds."""

    def __init__(self, block: nn.Module, returns: str):
        super().__init__(returns)
        self.block = block
        self.buffer: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, buffer = self._modules["block"](*args, **kwargs), self.buffer
        hidden = out if self.returns == "hidden" else out[0 if self.returns == "hidden_encoder" else 1]
        torch.sub(hidden, buffer, out=buffer)
        return out

    __call__ = forward


class _KeepState(_Replacement):
    """A block whose state is kept on the way."""

    def __init__(self, block: nn.Module, returns: str):
        super().__init__(returns)
        self.block, self.start = block, 0
        self.relative_l1: Callable[..., torch.Tensor] = ops.relative_l1
        self.at = 1 if returns == "encoder_hidden" else 0  # where a block's tuple has the hidden states
        self.__dict__.update(dict.fromkeys(BlockState._fields[:3]))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self._modules["block"](*args, **kwargs)
        hidden = out if self.returns == "hidden" else out[self.at]
        start, kept, encoder = self.start, self.hidden, self.encoder
        if start:
            hidden = hidden[start:]
        self.change.copy_(self.relative_l1(hidden, kept))
        kept.copy_(hidden)
        if encoder is not None:
            encoder.copy_(out[1 - self.at][start:])
        return out

    __call__ = forward


class _Resumption(_Replacement):
    """The kept state in a block's place."""

    def __init__(self, returns: str):
        super().__init__(returns)
        self.__dict__.update(dict.fromkeys(BlockState._fields[:3]))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.returns == "hidden":
            return self.hidden
        return (self.hidden, self.encoder) if self.returns == "hidden_encoder" else (self.encoder, self.hidden)

    __call__ = forward


def _parts(model: nn.Module, attribute: str) -> list[Any]:
    """What a view has taken over from its model, beside what they share by register (weights, inner modules)."""
    own = [v for k, v in model.__dict__.items() if k not in HOOK_ATTRIBUTES]
    return [*own, *model._modules.values(), *model._modules[attribute]]


class View:
    """A transformer with ``blocks`` in place of its own.  ``set_buffer`` names the storage of the next call."""

    def __init__(self, model: nn.Module, attribute: str, blocks: list[nn.Module] | None):
        self.model, self.attribute = model, attribute
        self.blocks = nn.ModuleList(blocks) if blocks is not None else None
        self.buffered = [b for b in blocks or () if isinstance(b, _AddResidual)]
        self._kept: dict[int, _KeepState | _Resumption] = {}
        self._states: dict[int, BlockState] | None = None  # those of the last call
        self._of = _parts(model, attribute)
        self.module = copy.copy(model)
        self.module.__dict__["_modules"] = dict(model._modules)
        for name in HOOK_ATTRIBUTES:
            self.module.__dict__.pop(name, None)
        if self.blocks is not None:
            self.module._modules[attribute] = self.blocks
        self.call: Callable[..., Any] = self.module.forward

    def stale(self) -> bool:
        """Whether something at the model's root or in its block list has been replaced since."""
        now = _parts(self.model, self.attribute)
        return len(now) != len(self._of) or any(a is not b for a, b in zip(now, self._of, strict=True))

    def compile(self, **options: Any) -> None:
        """Compiles the view as one full graph; raises at the first call where the model's forward breaks it."""
        forward = type(self.module).forward
        if not isinstance(forward, types.FunctionType):
            self.call = torch.compile(self.module, fullgraph=True, **options)
            return
        # The compiler counts recompilations by code object, so that every view has one of its own.
        code = forward.__code__.replace()
        own = types.FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__)
        own.__kwdefaults__ = forward.__kwdefaults__
        self.call = torch.compile(types.MethodType(own, self.module), fullgraph=True, **options)

    def set_states(self, states: dict[int, BlockState]) -> None:
        """Names where the next call keeps the states after blocks, and which one it resumes from."""
        if states is self._states:
            return
        self._states = states
        for number, block in self._kept.items():
            state = states[number]
            block.__dict__.update(zip(BlockState._fields[:3], state[:3], strict=True))
            if isinstance(block, _KeepState):
                block.start = state.start
                block.relative_l1 = ops.inner(state.hidden.device, state.hidden.dtype).relative_l1

    def set_buffer(self, buffer: torch.Tensor) -> None:
        for block in self.buffered:
            block.__dict__["buffer"] = buffer

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The original model holds this view's blocks while the context lasts."""
        own = self.model._modules[self.attribute]
        if self.blocks is not None:
            self.model._modules[self.attribute] = self.blocks
        try:
            yield
        finally:
            self.model._modules[self.attribute] = own


def plain_view(model: nn.Module, family: Family) -> View:
    """The model as it is, without the hooks on its root."""
    return View(model, family.blocks, None)


def recording_view(model: nn.Module, family: Family, numbers: tuple[int, ...], residual: bool) -> View:
    """Computes everything, keeps the states after the blocks ``numbers`` and, with ``residual``, leaves that of the
    block stack in the buffer."""
    blocks = list(getattr(model, family.blocks))
    kept = {number: _KeepState(blocks[number], family.returns) for number in numbers}
    blocks = [kept.get(number, block) for number, block in enumerate(blocks)]
    ends: list[nn.Module] = []
    if residual:
        blocks[0] = entry = _StoreEntry(blocks[0], family.returns)
        blocks[-1] = leaving = _StoreExit(blocks[-1], family.returns)
        ends = [entry, leaving]
    view = View(model, family.blocks, blocks)
    view.buffered, view._kept = ends, kept
    return view


def reusing_view(model: nn.Module, family: Family) -> View:
    """Calls no block: the residual in the buffer stands in for the stack, embeddings and head are computed."""
    count = len(getattr(model, family.blocks)) if family.indexes_blocks else 1
    blocks: list[nn.Module] = [_AddResidual(family.returns)]
    blocks += [_PassThrough(family.returns) for _ in range(count - 1)]
    return View(model, family.blocks, blocks)


def resuming_view(model: nn.Module, family: Family, after: int, numbers: tuple[int, ...]) -> View:
    """Goes on from the state kept after block ``after``, and keeps those after later ones of ``numbers``."""
    blocks = list(getattr(model, family.blocks))
    resumption = _Resumption(family.returns)
    kept = {number: _KeepState(blocks[number], family.returns) for number in numbers if number > after}
    skipped = [_PassThrough(family.returns) for _ in range(after)] if family.indexes_blocks else []
    behind = [kept.get(number, blocks[number]) for number in range(after + 1, len(blocks))]
    view = View(model, family.blocks, [*skipped, resumption, *behind])
    view._kept = {after: resumption, **kept}
    return view
