"""Hidden states that lie elsewhere, or in fewer bits, between the calls that write and read them.

A parked buffer is written from and read into tensors of the model's own device and dtype, which are there no longer
than the call.  In eight bits each row of the last axis has a scale of its own, so that the largest value of a row is
exact to a rounding of the format and none overflows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

#: What hidden states may be kept in.
DTYPES = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclasses.dataclass(frozen=True)
class Parking:
    """Where and in what hidden states are kept between calls.

    Args:
        device: "cpu", or None for the model's own.
        dtype: one of ``DTYPES``, or None for the model's own.

    Raises ``ValueError`` for another device or dtype.
    """

    device: str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu"):
            raise ValueError(f'cache_device must be "cpu", or None for the model\'s own, got {self.device!r}')
        if self.dtype is not None and self.dtype not in DTYPES:
            known = ", ".join(str(dtype) for dtype in DTYPES)
            raise ValueError(f"cache_dtype must be one of {known}, or None for the model's own, got {self.dtype!r}")

    def __bool__(self) -> bool:
        return self.device is not None or self.dtype is not None

    def place(self, device: torch.device) -> torch.device:
        return device if self.device is None else torch.device(self.device)


class Parked:
    """One buffer; its rows may be taken like a tensor's, and share its storage.

    Attributes:
        values: [rows, ...] where and in what they are kept.
        scales: [rows, ..., 1] in fp32 beside eight bits, else None.
        error: [1] in fp32, the largest relative L2 error of a write so far; None where nothing is lost.
    """

    __slots__ = ("copied", "error", "scales", "values")

    def __init__(
        self, values: torch.Tensor, scales: torch.Tensor | None, error: torch.Tensor | None, copied: list[Any]
    ):
        self.values, self.scales, self.error, self.copied = values, scales, error, copied

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Parked:
        scales = None if self.scales is None else self.scales[rows]
        return Parked(self.values[rows], scales, self.error, self.copied)

    def write(self, tensor: torch.Tensor) -> None:
        """Keeps a tensor of this shape."""
        if self.scales is not None:
            top = torch.finfo(self.values.dtype).max
            scales = tensor.abs().amax(-1, keepdim=True).float() / top
            scales = torch.where(scales > 0, scales, torch.ones_like(scales))
            values = (tensor.float() / scales).to(self.values.dtype)
            self._measure(tensor, values.float() * scales)
            self._keep((self.values, self.scales), (values, scales))
            return
        values = tensor.to(self.values.dtype)
        self._measure(tensor, values)
        self._keep((self.values,), (values,))

    def _measure(self, tensor: torch.Tensor, kept: torch.Tensor) -> None:
        if self.error is None:
            return
        exact = tensor.float()
        off = (kept.float() - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float32).tiny)
        torch.maximum(self.error, off.reshape(1), out=self.error)

    def _keep(self, kept: tuple[torch.Tensor, ...], made: tuple[torch.Tensor, ...]) -> None:
        if made[0].device == kept[0].device or made[0].device.type != "cuda":
            for to, tensor in zip(kept, made, strict=True):
                to.copy_(tensor)
            return
        # To host memory beside what is computed next; whoever reads waits for it.
        side, now = _copies(made[0].device), torch.cuda.current_stream(made[0].device)
        side.wait_stream(now)
        with torch.cuda.stream(side):
            for to, tensor in zip(kept, made, strict=True):
                to.copy_(tensor, non_blocking=True)
                tensor.record_stream(side)
            event = torch.cuda.Event()
            event.record()
        self.copied[:] = [event]

    def read(self, like: torch.Tensor) -> torch.Tensor:
        """What was written last, on ``like``'s device and in its dtype."""
        for event in self.copied:
            torch.cuda.current_stream(like.device).wait_event(event)
        values = self.values.to(like.device, non_blocking=True)
        if self.scales is None:
            return values.to(like.dtype)
        return (values.float() * self.scales.to(like.device, non_blocking=True)).to(like.dtype)


_streams: dict[torch.device, Any] = {}


def _copies(device: torch.device) -> Any:
    """The stream of a device that copies to host memory go by."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def stored(buffer: torch.Tensor | Parked, like: torch.Tensor) -> torch.Tensor:
    """What a buffer holds, as a tensor on ``like``'s device and in its dtype."""
    return buffer if isinstance(buffer, torch.Tensor) else buffer.read(like)


def store(buffer: Any, tensor: torch.Tensor) -> Any:
    """Copies a tensor into a buffer of its shape, parked or not, and returns the buffer.

    On a CPU calls are what a small copy costs: ``Tensor.copy_`` hands the interpreter's lock over four times, this
    once, and threads that serve other requests wait for it each time.
    """
    if not isinstance(buffer, torch.Tensor):
        buffer.write(tensor)
    elif buffer.is_cpu:
        torch._foreach_copy_([buffer], [tensor])
    else:
        buffer.copy_(tensor)
    return buffer
