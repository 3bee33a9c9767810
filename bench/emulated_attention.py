"""8-bit attention emulated in plain torch, under SageAttention's name in diffusers' dispatcher: for its error alone.

After SageAttention (arXiv 2410.02367): queries and keys are rounded to integers with one scale for each block of tokens
and head, keys after their mean over the tokens was subtracted (which no softmax sees); logits and softmax are fp32, and
probabilities meet values in the model's own precision.  Nothing here says anything about speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

QUERIES, KEYS = 128, 64  # tokens that have a scale in common


def rounded(x: torch.Tensor, block: int, bits: int) -> torch.Tensor:
    """x [B, H, N, D] as it is after rounding to signed integers of so many bits, a scale for every ``block`` tokens."""
    tokens, most = x.shape[2], 2 ** (bits - 1) - 1
    padded = torch.nn.functional.pad(x, (0, 0, 0, -tokens % block))
    blocks = padded.unflatten(2, (-1, block))
    scale = blocks.abs().amax((-2, -1), keepdim=True).clamp_min(1e-12) / most
    return ((blocks / scale).round() * scale).flatten(2, 3)[:, :, :tokens]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    bits: int = 8,
    smooth: bool = True,
) -> torch.Tensor:
    """[B, N, H, D] of each, as the dispatcher has them; the output too."""
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    q, k = q.float() * (q.shape[-1] ** -0.5 if scale is None else scale), k.float()
    if smooth:
        k = k - k.mean(2, keepdim=True)
    logits = rounded(q, QUERIES, bits) @ rounded(k, KEYS, bits).transpose(-1, -2)
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return (logits.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def backend(bits: int = 8, smooth: bool = True) -> Callable[..., torch.Tensor]:
    """What the dispatcher can call."""

    def emulated(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> torch.Tensor:
        if attn_mask is not None:
            raise ValueError("a mask is not supported by 8-bit attention")
        return attention(query, key, value, causal=is_causal, scale=scale, bits=bits, smooth=smooth)

    return emulated


@contextlib.contextmanager
def standing_in(function: Callable[..., torch.Tensor]) -> Iterator[Any]:
    """Diffusers calls ``function`` where a model's attention backend is "sage", as long as the context lasts."""
    registry, name = _AttentionBackendRegistry, AttentionBackendName.SAGE
    tables = registry._backends, registry._constraints, registry._supported_arg_names
    before, usable = [dict(table) for table in tables], attention_dispatch._CAN_USE_SAGE_ATTN
    try:
        registry.register(name)(function)
        attention_dispatch._CAN_USE_SAGE_ATTN = True
        yield name
    finally:
        attention_dispatch._CAN_USE_SAGE_ATTN = usable
        for table, contents in zip(tables, before, strict=True):
            table.clear()
            table.update(contents)
