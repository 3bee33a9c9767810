"""What stands in the places of a model's blocks: pass-throughs, an adder of a cached residual, keepers of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import ops
from ..cache.block_states import BlockState
from ..cache.parked import Parked, store, stored
from .family import BlockList, Family


class Replacement(nn.Module):
    """Stands in a block list's place; finds hidden states and text whether a model passes them by name or position.

    Nobody hangs hooks on it, so it is called past ``nn.Module.__call__``.  What it reads and writes are plain
    attributes and no registered buffers: offload that moves the model while such a block is in it must not put a copy
    in their place.
    """

    def __init__(self, of: BlockList):
        super().__init__()
        self.returns, self.names = of.returns, (of.hidden, of.encoder)
        self.at = 1 if of.returns == "encoder_hidden" else 0  # where a block's tuple has the hidden states
        self.both, self.tokens_first = of.both, of.tokens_first
        #: Context parallelism hands a block its rank's part of the tokens: what does that where a block is replaced.
        self.__dict__["split"] = None

    def entering(self, args: tuple, kwargs: dict) -> torch.Tensor:
        return args[0] if args else kwargs[self.names[0]]

    def result(self, hidden: torch.Tensor, args: tuple, kwargs: dict) -> Any:
        if self.returns == "hidden":
            return hidden
        return self.beside(hidden, self.other(args, kwargs))

    def other(self, args: tuple, kwargs: dict) -> torch.Tensor | None:
        """What enters beside the hidden states."""
        return args[1] if len(args) > 1 else kwargs[self.names[1]]

    def beside(self, hidden: torch.Tensor, other: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return (hidden, other) if self.returns == "hidden_encoder" else (other, hidden)

    def hidden_of(self, out: Any) -> torch.Tensor:
        """The hidden states that a block gave."""
        return out if self.returns == "hidden" else out[self.at]


def flattened(*tensors: torch.Tensor | None) -> torch.Tensor:
    """Tensors with the same rows as one, [rows, 1, elements]."""
    return torch.cat([t.flatten(1) for t in tensors if t is not None], dim=1).unsqueeze(1)


class PassThrough(Replacement):
    """The identity."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.split is not None:
            args, kwargs = self.split(args, kwargs)
        return self.result(self.entering(args, kwargs), args, kwargs)

    __call__ = forward


class AddResidual(Replacement):
    """Adds the cached residual of the block stack.  ``buffer`` is set before each call; it is the branch's own."""

    def __init__(self, of: BlockList):
        super().__init__(of)
        self.buffer: torch.Tensor | None = None
        self.joined = of.joined

    def added(self, hidden: torch.Tensor, other: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """The residuals of both lie one behind the other."""
        buffer, size = stored(self.buffer, hidden)[:, 0], hidden[0].numel()
        if other is not None:
            other = other + buffer[:, size:].view(other.shape)
        return self.beside(hidden + buffer[:, :size].view(hidden.shape), other)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.split is not None:
            args, kwargs = self.split(args, kwargs)
        if self.both:
            return self.added(self.entering(args, kwargs), self.other(args, kwargs))
        hidden = args[0] if args else kwargs[self.names[0]]
        buffer = self.buffer if self.buffer.__class__ is torch.Tensor else stored(self.buffer, hidden)
        if self.joined == "encoder" and buffer.shape[1] > hidden.shape[1]:
            buffer = buffer[:, -hidden.shape[1] :]  # what went before the hidden states is kept in a cache since then
        hidden = hidden + buffer
        return hidden if self.returns == "hidden" else self.result(hidden, args, kwargs)

    __call__ = forward


class Remember(PassThrough):
    """The first block's place where several lists are skipped: ``AddFirst`` at the end adds to what entered here."""

    def __init__(self, of: BlockList, family: Family):
        super().__init__(of)
        self.__dict__.update(entered=None, family=family)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.split is not None:
            args, kwargs = self.split(args, kwargs)
        hidden = self.entering(args, kwargs)
        self.__dict__["entered"] = self.family.entering(hidden, kwargs)
        return self.result(hidden, args, kwargs)

    __call__ = forward


class AddFirst(Replacement):
    """The last block's place: what entered the first one, and the residual, whatever was done to it on the way."""

    def __init__(self, of: BlockList, first: Remember, family: Family, model: nn.Module):
        super().__init__(of)
        self.buffer: torch.Tensor | None = None
        self.joined = of.joined if len(family.blocks) > 1 else ""  # what entered a single list is joined already
        self.__dict__.update(first=first, family=family, model=model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        arriving, hidden = self.entering(args, kwargs), self.first.__dict__["entered"]
        hidden = hidden + stored(self.buffer, hidden)
        self.first.__dict__["entered"] = None
        hidden = self.family.leaving(self.model, hidden, arriving, self.joined)
        return self.result(hidden, args, kwargs)

    __call__ = forward


class StoreEntry(Replacement):
    """The first block; what enters it is copied into the buffer, where ``StoreExit`` turns it into the residual."""

    def __init__(self, of: BlockList, block: nn.Module, family: Family):
        super().__init__(of)
        self.block = block
        self.__dict__["family"] = family
        self.buffer: torch.Tensor | None = None
        self.allocate: Callable[[torch.Tensor], torch.Tensor] = torch.empty_like

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        mine, named = (args, kwargs) if self.split is None else self.split(args, kwargs)  # the block splits by itself
        hidden = self.family.entering(self.entering(mine, named), named)
        if self.both:
            hidden = flattened(hidden, self.other(mine, named))
        if self.buffer is None or self.buffer.shape != hidden.shape:
            self.__dict__["buffer"] = self.allocate(hidden)
        if isinstance(self.buffer, Parked):
            self.__dict__["entered"] = hidden.clone()  # blocks may write into it
        else:
            self.buffer.copy_(hidden)
        return self._modules["block"](*args, **kwargs)

    __call__ = forward


class StoreExit(Replacement):
    """The last block; the buffer becomes what leaves it minus what the buffer holds."""

    def __init__(self, of: BlockList, block: nn.Module, first: StoreEntry, family: Family, model: nn.Module):
        super().__init__(of)
        self.block, self.joined = block, of.joined
        self.several = len(family.blocks) > 1
        self.__dict__.update(first=first, family=family, model=model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self._modules["block"](*args, **kwargs)
        buffer = self.first.buffer
        hidden = flattened(out[self.at], out[1 - self.at]) if self.both else self.hidden_of(out)
        if self.several:
            hidden = self.family.entered(self.model, hidden, buffer, self.joined)
        if isinstance(buffer, Parked):
            buffer.write(hidden - self.first.__dict__.pop("entered"))
        else:
            torch.sub(hidden, buffer, out=buffer)
        return out

    __call__ = forward


class KeepState(Replacement):
    """A block whose state is kept on the way."""

    def __init__(self, of: BlockList, block: nn.Module):
        super().__init__(of)
        self.block = block
        self.relative_l1: Callable[..., torch.Tensor] = ops.relative_l1
        self.set(None)

    def set(self, state: BlockState | None) -> None:
        """Where the next call keeps its state."""
        own = self.__dict__
        own["state"] = state
        own["hidden"], own["encoder"], own["change"] = (None,) * 3 if state is None else state.tensors
        own["start"], own["rows"] = (0, 1) if state is None else (state.start, state.rows)
        if self.hidden is not None:
            parked = isinstance(self.hidden, Parked)
            self.relative_l1 = (
                ops.relative_l1 if parked else ops.inner(self.hidden.device, self.hidden.dtype).relative_l1
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self._modules["block"](*args, **kwargs)
        hidden = out if self.returns == "hidden" else out[self.at]
        encoder = None if self.returns == "hidden" else out[1 - self.at]
        start, kept = self.start, self.hidden
        if self.tokens_first:
            hidden = hidden.transpose(0, 1).contiguous()
        if start:
            each = len(hidden) // self.rows  # blocks of some models see frames as rows
            hidden = hidden[start * each :]
            encoder = None if encoder is None else encoder[start * (len(encoder) // self.rows) :]
        if kept is None:
            self.state.keep(hidden, encoder)
            self.set(self.state)
            return out
        rows, before = len(self.change), stored(kept, hidden)
        if len(hidden) == rows:
            self.change.copy_(self.relative_l1(hidden, before))
        else:
            self.change.copy_(self.relative_l1(hidden.reshape(rows, -1), before.view(rows, -1)))
        store(kept, hidden)
        if self.encoder is not None:
            store(self.encoder, encoder)
        return out

    __call__ = forward


class Resumption(Replacement):
    """The kept state in a block's place."""

    def __init__(self, of: BlockList):
        super().__init__(of)
        self.set(None)

    def set(self, state: BlockState | None) -> None:
        own = self.__dict__
        own["hidden"], own["encoder"] = (None, None) if state is None else state.tensors[:2]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden, encoder = self.hidden, self.encoder
        if isinstance(hidden, Parked):
            like = self.entering(args, kwargs)
            hidden, encoder = hidden.read(like), None if encoder is None else encoder.read(like)
        if self.tokens_first:
            return hidden.transpose(0, 1).contiguous()
        if self.returns == "hidden":
            return hidden
        return (hidden, encoder) if self.returns == "hidden_encoder" else (encoder, hidden)

    __call__ = forward
