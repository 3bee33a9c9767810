"""What records work on a device so that one launch does it again: CUDA graphs, and how they are made without harm.

A capture can go wrong in many ways, most of which belong to whoever calls us: a value read on the host, memory that is
not there, another library that is capturing.  Whatever happens, the stream that was current before is current again
and captures nothing, torch's allocator is told that the capture is over, and random numbers are as they were.

While a capture lasts another thread may allocate and launch.  What CUDA refuses it even so is to wait for the whole
device, and what torch refuses it is to empty its cache.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

#: Device types that something here can capture on; graphs are certified, and used unasked, on these alone.
DEVICES: tuple[str, ...] = ("cuda",)
#: torch captures one graph at a time in a process.
_ONE_AT_A_TIME = threading.RLock()
#: Graphs whose capture never ended properly.  torch's allocators may go on asking them which stream is theirs.
_BROKEN: list[Any] = []


class Backend(Protocol):
    """What captures.

    Attributes:
        device: type of the tensors it can capture.
        warmups: how many times it has called functions that it did not record.
        nbytes: bytes on the device that its recordings hold, results included, beside what they are given.
    """

    device: str
    warmups: int

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        """(replay, the results that every replay writes anew) of a function that has been called before."""
        ...

    @property
    def nbytes(self) -> int: ...

    def release(self) -> None:
        """Its recordings are no longer used by anybody."""
        ...


class CudaBackend:
    """CUDA graphs, with one memory pool and one side stream a device.

    Graphs of one pool share the memory of their intermediate results, so their replays must not overlap: a backend is
    for one run at a time.
    """

    device = "cuda"

    def __init__(self) -> None:
        self.warmups = 0
        self._places: dict[int, tuple[Any, Any]] = {}
        self._pools: list[Any] = []

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        """Records ``function`` on the current device, after one call of it on the side stream where that one is new.

        Its first call there makes what cuBLAS and cuDNN keep for every stream, which a graph's pool must not own; what
        is loaded or compiled for these shapes was so when the function was called for its results.

        Raises whatever the function or torch does, with the current stream as it was.
        """
        before = torch.cuda.current_stream()
        if torch.cuda.is_current_stream_capturing():  # any call of ours would invalidate somebody's graph
            raise RuntimeError("this stream is being captured already")
        index = torch.cuda.current_device()
        with _ONE_AT_A_TIME, torch.cuda.stream(before):  # which puts it back, however the capture ends
            if index not in self._places:
                self._places[index] = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
                self._pools.append(self._places[index][0])
                try:
                    self._warm_up(function, self._places[index][1], before)
                except BaseException:
                    del self._places[index]
                    raise
            return self._captured(function, index)

    def _warm_up(self, function: Callable[[], Any], stream: Any, before: Any) -> None:
        self.warmups += 1
        stream.wait_stream(before)
        try:
            with torch.cuda.stream(stream):
                function()
        finally:
            before.wait_stream(stream)

    def _captured(self, function: Callable[[], Any], index: int) -> tuple[Callable[[], Any], Any]:
        pool, stream = self._places[index]
        graph = torch.cuda.CUDAGraph()
        try:
            # In this mode another thread may allocate and synchronise while this one captures.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                outputs = function()
        except BaseException:
            del self._places[index]  # the next one begins on a stream and with a pool of its own
            _abandon(graph, stream, pool, index)
            raise
        return graph.replay, outputs

    @property
    def nbytes(self) -> int:
        """Bytes of the pools' segments, as the allocator has them."""
        total = 0
        for pool in self._pools:
            with contextlib.suppress(RuntimeError):  # an allocator that keeps no segments
                total += sum(segment["total_size"] for segment in torch.cuda.memory_snapshot(pool))
        return total

    def release(self) -> None:
        """New pools from now on.  The old ones' memory is free to others once their graphs are gone."""
        kept = bool(self._pools)
        self._places.clear()
        self._pools.clear()
        if kept and not torch.cuda.is_current_stream_capturing():
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()  # a pool without graphs serves nobody until then


def _abandon(graph: Any, stream: Any, pool: Any, index: int) -> None:
    """Ends a capture that failed, on the stream and in torch's allocator, as far as torch has not done it itself."""
    with contextlib.suppress(Exception), torch.cuda.stream(stream):
        if torch.cuda.is_current_stream_capturing():
            graph.capture_end()
    try:
        graph.pool()  # answers once a capture has ended: then the graph gives its pool back itself
    except Exception:
        # The allocator goes on routing memory to the pool, and refuses to free any, until it is told otherwise.
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)
        with contextlib.suppress(Exception):
            graph.reset()
        _BROKEN.append(graph)
        _recover()


def _recover() -> None:
    """Captures something that succeeds: torch's generator takes a capture for going on until one has ended, and
    would refuse to draw the noise of the next video."""
    with contextlib.suppress(Exception):
        some = torch.zeros(1, device="cuda")
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            some.zero_()


def on(device: torch.device | None) -> Any:
    """This device is the current one while the context lasts; other than CUDA devices have no such thing."""
    return torch.cuda.device(device) if device is not None and device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def random_as_it_was(*devices: torch.device | None) -> Iterator[None]:
    """Gives back what random numbers are drawn in the context: torch's streams of the CPU and of ``devices``."""
    places = [(torch.get_rng_state, torch.set_rng_state, ())]
    for device in devices:
        if device is not None and device.type == "cuda":
            places.append((torch.cuda.get_rng_state, torch.cuda.set_rng_state, (device,)))
    before = [get(*where) for get, _, where in places]
    try:
        yield
    finally:
        for (get, put, where), state in zip(places, before, strict=True):
            if not torch.equal(get(*where), state):  # otherwise nothing is touched
                put(state, *where)
