"""What a call is refused for before anything is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def refuse_gradients(module: nn.Module, inputs: dict[str, Any]) -> None:
    """Raises ``ValueError`` for a call that gradients are asked of."""
    given = (v for v in inputs.values() if isinstance(v, torch.Tensor))
    if any(t.requires_grad for t in given) or any(p.requires_grad for p in module.parameters()):
        raise ValueError(
            "vaccel: an accelerated run computes no gradients: call the pipeline under torch.no_grad(), or use "
            "handle.remove() before training through it"
        )


def check_small(small: nn.Module, x: torch.Tensor) -> None:
    """Raises ``ValueError`` where the small model was left behind when the pipeline was moved."""
    dtype = getattr(small, "dtype", x.dtype)
    device = next((p.device for p in small.parameters()), x.device)
    if dtype != x.dtype or (device != x.device and device.type != "meta" and "_hf_hook" not in small.__dict__):
        raise ValueError(
            f"the small model is {dtype} on {device}, the pipeline runs in {x.dtype} on {x.device}: move it too, with "
            f"small.to({str(x.device)!r}, {x.dtype})"
        )
