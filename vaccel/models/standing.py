"""Where a model stands: what of it a captured step has fixed, as a value that changes when any of that does."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import nn

#: What peft's layers decide by when they are called, beside their scales.
ADAPTER_STATE = ("active_adapters", "disable_adapters", "merged_adapters")


def standing(model: nn.Module) -> Hashable:
    """Equal as long as a call of the model runs the same Python on tensors at the same places.

    That is: its modules, whether they train, their parameters' and buffers' addresses, which adapters are used and how
    they are scaled, which processors compute attention and by which backend.  Contents are not read: what is written in
    place, as a LoRA's weights are when another is swapped in where they lie, a captured step sees by itself.
    """
    modules, tensors = [], []
    for module in model.modules():
        modules.append((id(module), module.training, *_attention(module), *_adapters(module)))
        for owned in (module._parameters, module._buffers):
            tensors += [at for t in owned.values() if t is not None for at in _addresses(t)]
    return tuple(modules), tuple(tensors)


def listener(model: nn.Module) -> str | None:
    """The class of a module in the model that calls somebody else's Python, which a captured step would leave out."""
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return type(module).__name__
    return None


def _addresses(tensor: torch.Tensor) -> Iterator[int]:
    """Of a tensor that is made of others (quantised weights), theirs."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _addresses(getattr(tensor, name))
        return
    try:
        yield tensor.data_ptr()
    except RuntimeError:  # one without storage
        yield id(tensor)


def _attention(module: nn.Module) -> tuple[Any, ...]:
    processor = getattr(module, "processor", None)
    if processor is None:
        return ()
    return id(processor), type(processor), str(getattr(processor, "_attention_backend", None))


def _adapters(module: nn.Module) -> tuple[str, ...]:
    scaling = getattr(module, "scaling", None)
    if not isinstance(scaling, dict):
        return ()
    scales = [(k, next(_addresses(v)) if isinstance(v, torch.Tensor) else v) for k, v in scaling.items()]
    return repr(scales), repr([getattr(module, name, None) for name in ADAPTER_STATE])
