"""A digest over the weights in force: what a calibration, or what was learnt of a pipeline, is bound to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

#: What peft's layers decide by when they are called.
ADAPTER_STATE = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")
CHUNK = 1 << 22  # elements at once: bounds the memory beside the weights
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest_of(models: Mapping[str, nn.Module]) -> str:
    """Of several models together, such as both transformers of a pipeline."""
    text = "".join(f"{name}:{digest(model)};" for name, model in sorted(models.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def digest(model: nn.Module) -> str:
    """Of all parameters and saved buffers, bit for bit, with their names, shapes and dtypes, and of adapters' state.

    The same wherever the weights lie; computed there, in one pass.
    """
    found = hashlib.sha256()
    for line in _lines(model):
        found.update(line.encode())
    return found.hexdigest()[:16]


def _lines(model: nn.Module) -> Iterator[str]:
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if isinstance(tensor, torch.Tensor):
            yield f"{name} {type(tensor).__name__} {tuple(tensor.shape)} {tensor.dtype} {_content(tensor)}\n"
    for name, module in model.named_modules():
        if isinstance(getattr(module, "scaling", None), dict):
            yield f"{name} {[getattr(module, key, None) for key in ADAPTER_STATE]!r}\n"


def _content(tensor: Any) -> int:
    """The sum over all elements of their bits times odd numbers that depend on their place, mod 2^64."""
    if tensor.is_meta or tensor.numel() == 0:
        return 0
    flat = tensor.detach().contiguous().view(-1)
    bits = flat.view(_INTEGERS.get(flat.element_size(), torch.uint8)) if flat.element_size() in _INTEGERS else flat
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), CHUNK):
        part = bits[start : start + CHUNK].to(torch.int64)
        place = torch.arange(start, start + len(part), device=bits.device, dtype=torch.int64)
        total += (part * (2 * place + 1) * 0x9E3779B97F4A7C1 + part * place).sum()
    return int(total)
