"""Whether a step waits for its launches: measured on the user's own forwards, once for every kind of call."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

#: A forward is launch-bound where enqueueing it takes at least this share of the device's time for it.  At 1 the device
#: waits for every launch; well below, it has work queued throughout and a graph would only cost memory.
LAUNCH_BOUND = 0.8

_now = time.perf_counter


class Clock(Protocol):
    """Times a forward on the current device."""

    def begin(self) -> Any: ...

    def end(self, begun: Any) -> Any:
        """The measurement, which may not be over yet."""
        ...

    def read(self, measured: Any) -> tuple[float, float] | None:
        """Seconds that enqueueing took and that the device took; None as long as the device has not finished."""
        ...


class CudaClock:
    """By CUDA events, which are read when the device has passed them and never waited for.

    The device's queue is emptied before the measured forward, the one time: with earlier work in it, a host that waits
    for room in the queue would look like one that is slow.  A forward of many thousand kernels fills the queue (about
    a thousand launches) by itself, and its share is then read too high, which costs memory and not time.
    """

    def begin(self) -> Any:
        torch.cuda.current_stream().synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        return first, last, _now()

    def end(self, begun: Any) -> Any:
        first, last, began = begun
        seconds = _now() - began
        last.record()
        return first, last, seconds

    def read(self, measured: Any) -> tuple[float, float] | None:
        first, last, seconds = measured
        return (seconds, first.elapsed_time(last) / 1e3) if last.query() else None


class Known:
    """What is known of one kind of call that has run without a graph."""

    __slots__ = ("_measured", "share")

    def __init__(self) -> None:
        self._measured: Any = None
        self.share: float | None = None  # of the device's time that enqueueing takes

    @property
    def bound(self) -> bool:
        """Whether it is known to be launch-bound."""
        return self.share is not None and self.share >= LAUNCH_BOUND

    def timed(self, clock: Clock, function: Any, inputs: Any) -> Any:
        """``function(inputs)``, measured the first time; afterwards it is looked whether the device has finished."""
        if self._measured is None:
            begun = clock.begin()
            output = function(inputs)
            self._measured = clock.end(begun)
            return output
        return function(inputs)

    def look(self, clock: Clock) -> bool:
        """Whether the share is known now; never waits for the device."""
        if self.share is None and self._measured is not None and (times := clock.read(self._measured)) is not None:
            enqueued, device = times
            self.share = enqueued / device if device > 0 else 1.0
        return self.share is not None
