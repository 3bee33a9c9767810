"""Step functions captured as CUDA graphs: recorded once for every kind of call, replayed with one launch after that.

A *step function* takes a call's arguments, runs a model and the ops of its action, and returns tensors.  It may write
to buffers; those whose contents it also reads are named, so that warming up leaves them as they were.  Captured, its
Python never runs again; so whatever Python decides with (shapes, flags, which buffer) is part of the key it is
captured under.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils import _pytree as pytree

StepFunction = Callable[[Any], Any]


class Backend(Protocol):
    """What captures: (function without arguments) -> (replay, the outputs that every replay writes anew)."""

    #: Device type of the tensors it can capture.
    device: str

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]: ...


class CudaBackend:
    """CUDA graphs with one memory pool a device, warmed up and captured on one side stream of it."""

    device = "cuda"
    warmups = 3

    def __init__(self) -> None:
        self._places: dict[int, tuple[Any, Any]] = {}

    def _place(self) -> tuple[Any, Any]:
        """The current device's pool and stream."""
        index = torch.cuda.current_device()
        if index not in self._places:
            self._places[index] = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        return self._places[index]

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        pool, stream = self._place()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.warmups):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            outputs = function()
        return graph.replay, outputs


def _on(tensors: Sequence[torch.Tensor]) -> Any:
    """The device of these tensors is the current one while the context lasts."""
    device = tensors[0].device if tensors else None
    return torch.cuda.device(device) if device is not None and device.type == "cuda" else contextlib.nullcontext()


class Captured(NamedTuple):
    """A recorded step function: where its tensors are read from, how to replay it, where its results stand."""

    inputs: list[torch.Tensor]
    replay: Callable[[], Any]
    outputs: Any


class Captures:
    """The captured step functions of one pipeline, ``limit`` at the most: the one unused for longest goes first.

    What cannot be captured runs as it is; the reason is in ``refused`` and is said once.
    """

    def __init__(self, backend: Backend, limit: int = 32):
        self.backend, self.limit = backend, limit
        self.refused: list[str] = []
        self._captured: OrderedDict[Hashable, Captured] = OrderedDict()
        self._state: Hashable = None
        self._failed = False  # to capture in this state
        self._eager = False

    def __len__(self) -> int:
        return len(self._captured)

    def begin(self, state: Hashable, refusal: str | None = None) -> None:
        """To be called before a run: forgets what was captured in another ``state`` of models and buffers.

        Args:
            state: equal as long as weights and buffers stand where they stood.
            refusal: why nothing can be captured, where that is so.
        """
        if state != self._state:  # what failed may work now
            self.clear()
            self._state, self._failed = state, False
        self._eager = self._failed
        if refusal is not None:
            self._refuse(refusal)

    def clear(self) -> None:
        self._captured.clear()

    def __call__(
        self, key: Hashable, function: StepFunction, inputs: Any, overwritten: Sequence[torch.Tensor] = ()
    ) -> Any:
        """``function(inputs)``, replayed where it has been captured under ``key`` for such inputs.

        ``overwritten`` are the buffers that it reads before it writes to them.

        The tensors returned are the caller's own: no replay writes to them.
        """
        if self._eager:
            return function(inputs)
        leaves, structure = pytree.tree_flatten(inputs)
        at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        tensors = [leaves[i] for i in at]
        signature = (key, structure, tuple(_signature(leaf) for leaf in leaves))
        captured = self._captured.get(signature)
        if captured is None:
            captured = self._capture(signature, function, leaves, at, structure, overwritten)
            if captured is None:
                return function(inputs)
        self._captured.move_to_end(signature)
        for static, tensor in zip(captured.inputs, tensors, strict=True):
            static.copy_(tensor)
        with _on(tensors):
            captured.replay()
        return pytree.tree_map(torch.clone, captured.outputs)

    def _capture(
        self,
        signature: Hashable,
        function: StepFunction,
        leaves: list[Any],
        at: list[int],
        structure: Any,
        overwritten: Sequence[torch.Tensor],
    ) -> Captured | None:
        """None where it cannot be captured; this run then goes on without graphs."""
        elsewhere = {leaves[i].device.type for i in at} - {self.backend.device}
        if elsewhere:
            self._fail(f"an argument of the model lies on {elsewhere.pop()}")
            return None
        static = list(leaves)
        for i in at:
            static[i] = leaves[i].clone()
        arguments = pytree.tree_unflatten(static, structure)
        before = [t.clone() for t in overwritten]
        try:
            with _on([leaves[i] for i in at]):
                replay, outputs = self.backend.capture(lambda: function(arguments))
        except Exception as error:  # whatever it is, the step runs without
            said = str(error).strip().splitlines() or [type(error).__name__]
            self._fail(f"capturing failed: {said[0]}")
            return None
        finally:
            for t, contents in zip(overwritten, before, strict=True):
                t.copy_(contents)
        self._captured[signature] = captured = Captured([static[i] for i in at], replay, outputs)
        while len(self._captured) > self.limit:
            self._captured.popitem(last=False)
        return captured

    def _fail(self, reason: str) -> None:
        """Refuses until models or buffers change."""
        self._failed = True
        self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        """Runs eagerly until the next ``begin``."""
        self._eager = True
        if reason not in self.refused:
            self.refused.append(reason)
            warnings.warn(f"vaccel: running without CUDA graphs: {reason}", stacklevel=3)


def _signature(leaf: Any) -> Hashable:
    """What of an argument is fixed when a graph is captured."""
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    try:
        hash(leaf)
    except TypeError:
        return repr(leaf)
    return leaf


def backend() -> Backend:
    """What captures on this machine.  Raises ``ValueError`` where nothing can."""
    if not torch.cuda.is_available():
        raise ValueError("cuda_graphs=True needs a CUDA device, and torch sees none here")
    return CudaBackend()
