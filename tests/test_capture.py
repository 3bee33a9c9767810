"""How graphs are captured on CUDA devices, seen through stand-ins for torch's: in which order, and what is left behind
where it goes wrong.  What the device itself does only tests on a GPU can show."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

from vaccel import capture
from vaccel.capture import CudaBackend


class Stream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class Graph:
    """Ends, or does not, as ``cuda.fails`` says."""

    def __init__(self, cuda):
        self.cuda, self.ended = cuda, False

    def begin(self, pool, mode):
        self.cuda.log.append(f"begin in {pool} {mode}")
        self.cuda.capturing = self.cuda.current
        self.cuda.underway.append(pool)

    def capture_end(self):
        self.cuda.log.append("end")
        if self.cuda.fails == "open":
            self.cuda.fails = ""
            raise RuntimeError("Capture must end on the same stream it began on.")
        self.cuda.capturing = None
        if self.cuda.fails == "invalidated":
            self.cuda.fails = ""
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.underway.pop()
        self.ended = True

    def pool(self):
        if not self.ended:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")

    def reset(self):
        self.cuda.log.append("reset")

    def replay(self):
        self.cuda.log.append(f"replay on device {self.cuda.device}")


class Cuda:
    """One thread's view of torch.cuda."""

    def __init__(self):
        self.log, self.underway, self.released = [], [], []
        self.device, self.fails, self.capturing, self.pools = 0, "", None, 0
        self.current = self.user = Stream(self, "user's")
        self.sides = 0

    def patch(self, monkeypatch):
        cuda = self

        class graph:  # noqa: N801  as torch's
            def __init__(self, graph, pool=None, stream=None, capture_error_mode="global"):
                self.graph, self.pool, self.stream, self.mode = graph, pool or "its own", stream, capture_error_mode

            def __enter__(self):
                self.before, cuda.current = cuda.current, self.stream
                self.graph.begin(self.pool, self.mode)

            def __exit__(self, *exception):
                self.graph.capture_end()
                cuda.current = self.before  # not reached where that raises

        @contextlib.contextmanager
        def stream(chosen):
            before, cuda.current = cuda.current, chosen
            try:
                yield
            finally:
                cuda.current = before

        def side():
            cuda.sides += 1
            return Stream(cuda, f"side {cuda.sides} of {cuda.device}")

        def handle():
            cuda.pools += 1
            return f"pool {cuda.pools}"

        stand_ins = {
            "graph": graph, "stream": stream, "Stream": side, "graph_pool_handle": handle,
            "CUDAGraph": lambda: Graph(cuda), "current_stream": lambda: cuda.current,
            "current_device": lambda: cuda.device,
            "is_current_stream_capturing": lambda: cuda.capturing is cuda.current,
            "empty_cache": lambda: cuda.log.append("empty cache"),
            "memory_snapshot": lambda pool: [{"total_size": 2**20}] * (pool not in cuda.released),
        }  # fmt: skip
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda d, p: cuda.underway.remove(p), raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda d, p: cuda.released.append(p), raising=False)
        monkeypatch.setattr(capture, "_BROKEN", [])
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *size, device=None: zeros(*size))


@pytest.fixture
def cuda(monkeypatch):
    made = Cuda()
    made.patch(monkeypatch)
    return made


def test_a_stream_is_warmed_up_once_and_captures_in_its_own_thread_alone(cuda):
    backend, streams = CudaBackend(), []

    def function():
        streams.append(cuda.current.name)
        return "outputs"

    replay, outputs = backend.capture(function)
    backend.capture(function)
    assert outputs == "outputs"
    assert streams == ["side 1 of 0"] * 3
    assert backend.warmups == 1
    assert cuda.log == [
        "side 1 of 0 waits for user's", "user's waits for side 1 of 0",
        "begin in pool 1 thread_local", "end", "begin in pool 1 thread_local", "end",
    ]  # fmt: skip
    assert cuda.current is cuda.user
    replay()
    assert backend.nbytes == 2**20
    backend.release()
    assert (backend.nbytes, cuda.log[-1]) == (0, "empty cache")
    backend.capture(function)
    assert cuda.pools == 2, "a pool whose graphs are gone is not begun anew"


def test_devices_have_streams_and_pools_of_their_own(cuda):
    backend = CudaBackend()
    for cuda.device in (0, 1, 0):
        backend.capture(lambda: None)
    assert (cuda.pools, cuda.sides, backend.warmups) == (2, 2, 2)
    assert [line for line in cuda.log if line.startswith("begin")] == [
        f"begin in pool {n} thread_local" for n in (1, 2, 1)
    ]
    assert backend.nbytes == 2 * 2**20


@pytest.mark.parametrize("error", [RuntimeError("in the function"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails", ["", "invalidated", "open"])
def test_whatever_fails_the_stream_and_the_allocator_are_as_they_were(fails, error, cuda):
    backend = CudaBackend()
    backend.capture(lambda: None)
    cuda.log.clear()
    cuda.fails = fails

    def function():
        raise error

    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        backend.capture(function)
    assert cuda.current is cuda.user
    assert cuda.capturing is None
    assert cuda.underway == [], "the allocator routes nothing to a pool any more"
    # What torch has ended itself its graph gives back.
    assert cuda.released == (["pool 1"] if fails == "invalidated" else [])
    assert [type(graph) for graph in capture._BROKEN] == [Graph] * (fails == "invalidated")
    if fails == "invalidated":
        assert cuda.log[-3:] == ["reset", "begin in its own thread_local", "end"], (
            "the generator is told that it is over"
        )
    cuda.log.clear()
    backend.capture(lambda: None)
    assert "begin in pool 2 thread_local" in cuda.log, "on another stream, in another pool"


def test_a_warm_up_that_fails_leaves_no_place(cuda):
    backend = CudaBackend()

    def function():
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        backend.capture(function)
    assert cuda.log == ["side 1 of 0 waits for user's", "user's waits for side 1 of 0"]
    assert cuda.current is cuda.user
    backend.capture(lambda: None)
    assert backend.warmups == 2


def test_somebody_elses_capture_is_left_alone(cuda):
    cuda.capturing = cuda.user
    with pytest.raises(RuntimeError, match="captured already"):
        CudaBackend().capture(lambda: None)
    assert cuda.log == []


def test_one_capture_at_a_time(cuda):
    backends, inside, most, lock = [CudaBackend() for _ in range(4)], [0], [0], threading.Lock()

    def function():
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        threading.Event().wait(0.01)
        with lock:
            inside[0] -= 1

    threads = [threading.Thread(target=backend.capture, args=(function,)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_random_numbers_of_the_device_are_given_back(monkeypatch):
    states, put = {"now": torch.tensor([3])}, []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states["now"])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put.append((int(state), device)))
    device = torch.device("cuda", 1)
    with capture.random_as_it_was(device):
        pass
    assert put == [], "what was not drawn from is not touched"
    with contextlib.suppress(KeyError), capture.random_as_it_was(device):
        states["now"] = torch.tensor([7])
        raise KeyError
    assert put == [(3, device)]
