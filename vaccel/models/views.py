"""A transformer seen with another block list: the same weights, the model's own forward, other blocks in its list.

A view is a shallow copy of the user's module with its own ``_modules`` dict, so nothing of the original changes and
the copy compiles like any module.  Where other hooks sit on the original (offload, context parallel), the view's
blocks are put into the original for the length of one call instead, so that those hooks see the call as always.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..cache.block_states import BlockState
from .compiling import Compiler, full_graph
from .family import BlockList, Family
from .parallel_hooks import Split, splitting
from .replacements import (
    AddFirst,
    AddResidual,
    KeepState,
    PassThrough,
    Remember,
    Replacement,
    Resumption,
    StoreEntry,
    StoreExit,
)

HOOK_ATTRIBUTES = ("forward", "_diffusers_hook", "_hf_hook", "_old_forward", "_compiled_call_impl")


def _parts(model: nn.Module, attributes: Sequence[str]) -> list[Any]:
    """What a view has taken over from its model, beside what they share by register (weights, inner modules)."""
    own = [v for k, v in model.__dict__.items() if k not in HOOK_ATTRIBUTES]
    return [*own, *model._modules.values(), *(b for a in attributes for b in model._modules[a])]


def shallow(model: nn.Module) -> nn.Module:
    """``copy.copy``; also of a module that FSDP2 shards, whose class would make a whole new model to be filled."""
    kinds = type(model).__mro__
    sharded = [number for number, kind in enumerate(kinds) if kind.__name__ == "FSDPModule"]
    if not sharded:
        return copy.copy(model)
    made = object.__new__(kinds[sharded[-1] + 1])
    made.__setstate__(dict(model.__dict__))
    return made


class View:
    """A transformer with other block lists: attribute -> blocks.  ``set_buffer`` names the storage of the next call."""

    def __init__(self, model: nn.Module, family: Family, lists: dict[str, list[nn.Module]] | None):
        self.model = model
        self.attributes = tuple(dict.fromkeys(one.attribute for one in family.blocks))
        self.lists = {name: nn.ModuleList(blocks) for name, blocks in (lists or {}).items()}
        every = [b for blocks in self.lists.values() for b in blocks]
        self.buffered = [b for b in every if isinstance(b, (AddResidual, AddFirst))]
        #: The ids of the model's own blocks that a call of the view calls.
        self.called = {id(inner) for b in every for inner in (b, *b._modules.values())}
        self._kept: dict[int, KeepState | Resumption] = {}
        self._states: dict[int, BlockState] | None = None  # those of the last call
        self._of = _parts(model, self.attributes)
        self.module = shallow(model)
        self.module.__dict__["_modules"] = dict(model._modules)
        for name in HOOK_ATTRIBUTES:
            self.module.__dict__.pop(name, None)
        self.module._modules.update(self.lists)
        self.eager: Callable[..., Any] = self.module.forward
        self.call: Callable[..., Any] = self.eager

    def stale(self) -> bool:
        """Whether something at the model's root or in its block lists has been replaced since."""
        now = _parts(self.model, self.attributes)
        return len(now) != len(self._of) or any(a is not b for a, b in zip(now, self._of, strict=True))

    def compile(self, compiler: Compiler = full_graph) -> None:
        """Compiles the view; by default as one full graph, which raises at the first call of a forward that breaks."""
        forward = type(self.module).forward
        if not isinstance(forward, types.FunctionType):
            self.call = compiler(self.module)
            return
        # The compiler counts recompilations by code object, so that every view has one of its own.
        code = forward.__code__.replace()
        own = types.FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__)
        own.__kwdefaults__ = forward.__kwdefaults__
        self.call = compiler(types.MethodType(own, self.module))

    def set_states(self, states: dict[int, BlockState]) -> None:
        """Names where the next call keeps the states after blocks, and which one it resumes from."""
        if states is self._states:
            return
        self._states = states
        for number, block in self._kept.items():
            block.set(states[number])

    def set_buffer(self, buffer: torch.Tensor | None, allocate: Callable | None = None) -> None:
        """Names the residual's storage; where there is none yet, ``allocate`` makes it of what enters the blocks."""
        for block in self.buffered:
            block.__dict__["buffer"] = buffer
            if allocate is not None and isinstance(block, StoreEntry):
                block.__dict__["allocate"] = allocate

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The original model holds this view's blocks while the context lasts."""
        own = {name: self.model._modules[name] for name in self.lists}
        self.model._modules.update(self.lists)
        try:
            yield
        finally:
            self.model._modules.update(own)


def plain_view(model: nn.Module, family: Family) -> View:
    """The model as it is, without the hooks on its root."""
    return View(model, family, None)


class _Blocks:
    """The blocks of a model in the order in which they run, to be exchanged."""

    def __init__(self, model: nn.Module, family: Family, skipped: Sequence[int] = ()):
        self.model, self.family = model, family
        self.places = family.places(model)
        self.blocks: list[nn.Module | None] = list(family.block_list(model))
        for number in skipped:
            self.blocks[number] = PassThrough(self.of(number))

    def of(self, number: int) -> BlockList:
        return self.places[number][0]

    def view(self) -> View:
        """With what is there now; places that are None are left out."""
        lists: dict[str, list[nn.Module]] = {one.attribute: [] for one in self.family.blocks}
        for (one, number), block in zip(self.places, self.blocks, strict=True):
            if block is not None:
                own = getattr(self.model, one.attribute)[number]
                if block is not own:
                    _split_within(block, splitting(own))
                    block.__dict__.update({name: getattr(own, name) for name in self.family.block_attributes})
                lists[one.attribute].append(block)
        return View(self.model, self.family, lists)


def _split_within(block: nn.Module | None, split: Split | None) -> None:
    """What stands in a block's place takes this rank's part of what enters there."""
    while split is not None and isinstance(block, Replacement):
        block.__dict__["split"] = split
        block = block._modules.get("block")


def recording_view(
    model: nn.Module, family: Family, numbers: tuple[int, ...], residual: bool, skipped: Sequence[int] = ()
) -> View:
    """Computes everything but the blocks ``skipped``, keeps the states after the blocks ``numbers`` and, with
    ``residual``, leaves that of the block stack in the buffer."""
    every = _Blocks(model, family, skipped)
    blocks, kept, ends = every.blocks, {}, []
    for number in numbers:
        blocks[number] = kept[number] = KeepState(every.of(number), blocks[number])
    if residual:
        blocks[0] = entry = StoreEntry(every.of(0), blocks[0], family)
        last = len(blocks) - 1
        blocks[-1] = StoreExit(every.of(last), blocks[-1], entry, family, model)
        ends = [entry]
    view = every.view()
    view.buffered, view._kept = ends, kept
    return view


def reusing_view(model: nn.Module, family: Family) -> View:
    """Calls no block: the residual in the buffer stands in for the stack, embeddings and head are computed."""
    every = _Blocks(model, family)
    last = len(every.blocks) - 1
    if len(family.blocks) == 1 and (last == 0 or not family.between):
        every.blocks[0] = AddResidual(every.of(0))
        spare = range(1, last + 1)
    else:
        every.blocks[0] = first = Remember(every.of(0), family)
        every.blocks[last] = AddFirst(every.of(last), first, family, model)
        spare = range(1, last)
    for number in spare:
        every.blocks[number] = PassThrough(every.of(number)) if family.indexes_blocks else None
    return every.view()


def resuming_view(
    model: nn.Module, family: Family, after: int, numbers: tuple[int, ...], skipped: Sequence[int] = ()
) -> View:
    """Goes on from the state kept after block ``after``, and keeps those after later ones of ``numbers``."""
    every, kept = _Blocks(model, family, skipped), {}
    for number in range(after):
        every.blocks[number] = PassThrough(every.of(number)) if family.indexes_blocks else None
    every.blocks[after] = kept[after] = Resumption(every.of(after))
    for number in numbers:
        if number > after:
            every.blocks[number] = kept[number] = KeepState(every.of(number), every.blocks[number])
    view = every.view()
    view._kept = kept
    return view
