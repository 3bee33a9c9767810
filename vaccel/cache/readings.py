"""Values on their way from the device to the host: copied when they are computed, waited for when they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Reading:
    """The values of a small tensor as they are now, for the host to read later.

    On a GPU the copy goes to pinned memory, queued behind the work that is there already; ``tolist`` waits for that
    copy alone, not for what was queued after it.

    Args:
        tensor: what to read.
        pinned: where to, of the same shape and dtype; needed on a GPU, and read before it is used again.
        agreed: what makes of the values those that count, asked when they are first read.
    """

    __slots__ = ("_agreed", "_copied", "_pinned", "_values")

    def __init__(
        self,
        tensor: torch.Tensor,
        pinned: torch.Tensor | None = None,
        agreed: Callable[[list[Any]], list[Any]] | None = None,
    ):
        self._copied = self._values = None
        self._agreed = agreed
        if tensor.is_cuda:
            self._pinned = pinned.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._values = tensor.tolist()

    def tolist(self) -> list[float]:
        """The values."""
        if self._values is None:
            self._copied.synchronize()
            self._values = self._pinned.tolist()
        if self._agreed is not None:
            self._values, self._agreed = self._agreed(self._values), None
        return self._values
