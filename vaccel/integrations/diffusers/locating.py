"""Which step of its run a call belongs to, by where its timestep lies and never by counting.

In this order: the address of the call's own timestep in the scheduler's; that of the pipeline's ``_current_timestep``;
the value of either; the step that the scheduler says it is at.
"""

from __future__ import annotations

from typing import Any

import torch


def by_address(timesteps: Any, t: Any) -> int | None:
    """Where ``t`` lies in ``timesteps``: without a sync; None if it is no view of them."""
    if not isinstance(t, torch.Tensor) or not isinstance(timesteps, torch.Tensor) or t.dtype != timesteps.dtype:
        return None
    offset = t.data_ptr() - timesteps.data_ptr()
    size = timesteps.element_size()
    return offset // size if 0 <= offset < size * len(timesteps) else None


def by_value(timesteps: Any, t: Any) -> int | None:
    """Where ``timesteps`` holds the value of ``t``, at the cost of a sync; None where ``t`` has several values."""
    t = torch.as_tensor(t)
    if t.numel() != 1 and not bool((t == t.flatten()[0]).all()):
        return None
    values = torch.as_tensor(timesteps)
    found = (values == t.flatten()[0].to(values.device, values.dtype)).nonzero()
    return int(found[0]) if len(found) else None


def by_scheduler(scheduler: Any) -> int | None:
    """The index of the step that the scheduler makes next; None where it does not say."""
    index = getattr(scheduler, "step_index", None)
    if index is None:
        index = getattr(scheduler, "begin_index", None)
        return (index or 0) if hasattr(scheduler, "step_index") else None
    return int(index)
