"""Linear combinations with weights by channel, of several tensors that are packed as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def combined(
    op: Callable[..., Any], branches: Sequence[Sequence[torch.Tensor]], coefficients: torch.Tensor,
    pieces: Sequence[Any], out: torch.Tensor, *scale: float,
) -> torch.Tensor:  # fmt: skip
    """``op`` (``ops.linear_combination``, or its guided form with a ``scale``) for each tensor by itself, into ``out``.

    Args:
        branches: terms [rows, 1, elements] of each.
        coefficients: [terms, 1, channels of all tensors].
        pieces: where they lie (``vaccel.planning.channels.Piece``).
    """
    begin = 0
    for piece in pieces:
        own = coefficients[..., begin : begin + piece.channels].contiguous()
        begin += piece.channels
        target = piece.of(out)
        made = target if target.is_contiguous() else torch.empty(target.shape, dtype=out.dtype, device=out.device)
        op(*([piece.of(t) for t in terms] for terms in branches), own, *scale, made, channel_dim=piece.axis)
        if made is not target:
            target.copy_(made)
    return out
