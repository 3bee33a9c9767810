"""How many bytes a method's caches will hold, from shapes alone; what the engine then allocates is the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..methods import Method
from ..models.transformer import Stage


def plan(method: Method, stages: Sequence[Stage], x: torch.Tensor, branches: int, *, batched: bool) -> dict[str, int]:
    """Bytes by what they are for, and in all under "total".

    Args:
        stages: the parts of a run, with their models.
        x: a call's latents [rows, ...] on the meta device, in the models' dtype.
        branches: 2 with guidance, else 1.
        batched: whether both branches come in one call, in ``x``'s rows.
    """
    calls, rows = (1, branches) if batched else (branches, 1)
    sample = x[: len(x) // rows]
    planned = {}
    for kind in sorted(method.stores):
        model, level = kind.split(".")
        for stage in stages:
            if level == "states":
                planned[kind] = planned.get(kind, 0) + _states(method, stage, x, sample, calls, rows)
                continue
            if level == "delta":
                planned[kind] = planned.get(kind, 0) + (_nbytes(sample) if branches > 1 else 0)
                continue
            if level == "past":
                kept = method.remembers * (1 + method.banded)
                planned[kind] = planned.get(kind, 0) + kept * calls * _nbytes(x)
                continue
            if level == "blocks":
                described = stage.large if model == "large" else stage.small
                elements = torch.Size(described.hidden_shape({"hidden_states": x})).numel()
            else:
                elements = x.numel()
            planned[kind] = planned.get(kind, 0) + calls * elements * x.element_size()
    if method.watches & {"prediction", "denoised", "branches"}:
        if "large.last" not in method.stores:
            planned["signal"] = calls * _nbytes(x)
        if "denoised" in method.watches:
            planned["signal.latents"] = _nbytes(sample)
        if branches > 1 and method.watches & {"prediction", "denoised"}:
            planned["signal.guided"] = _nbytes(sample)
    if method.watches & {"velocity", "surprise"} and (branches > 1 or "surprise" in method.watches):
        planned["past.guided"] = _nbytes(sample)
    planned |= {name: _nbytes(kept) for name, kept in method.keeps(sample).items()}
    return planned | {"total": sum(planned.values())}


def _states(method: Method, stage: Stage, x: torch.Tensor, sample: torch.Tensor, calls: int, rows: int) -> int:
    """Of the states after blocks and their changes; of text that blocks carry along where its length is fixed."""
    both = method.state_branches == "both"
    inputs = {"hidden_states": x if both else sample}
    hidden, text = stage.large.hidden_shape(inputs), stage.large.encoder_shape(inputs)
    elements = torch.Size(hidden).numel() + (torch.Size(text).numel() if text is not None else 0)
    each = elements * x.element_size() + 4 * hidden[0]
    return len(method.keeps_states(stage.large.depth)) * each * (calls if both else 1)


def _nbytes(t: torch.Tensor) -> int:
    return t.numel() * t.element_size()
