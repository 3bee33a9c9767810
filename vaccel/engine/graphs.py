"""Step functions captured as CUDA graphs: recorded once for every kind of call, replayed with one launch after that.

A *step function* takes a call's arguments, runs a model and the ops of its action, and returns tensors.  It may write
to buffers; those whose contents it also reads are named, so that warming up leaves them as they were.  Captured, its
Python never runs again; so whatever Python decides with (shapes, flags, which buffer) is part of the key it is
captured under.

The first call of a kind just runs: it is the user's own step and warms up for a capture, and a kind that comes once is
never captured.  Unasked, the second one is measured, and only what waits for its launches is captured.
"""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ..capture import Backend, CudaBackend, on, random_as_it_was
from .graph_report import Report
from .launch_bound import Clock, CudaClock, Known

StepFunction = Callable[[Any], Any]

_now = time.perf_counter


class Captured(NamedTuple):
    """A recorded step function: where its tensors are read from, how to replay it, where its results stand."""

    inputs: list[torch.Tensor]
    replay: Callable[[], Any]
    outputs: Any

    def again(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Replays it with these tensors; the results are the caller's own."""
        for static, tensor in zip(self.inputs, tensors, strict=True):
            static.copy_(tensor)
        with on(_device(tensors)):
            self.replay()
        return pytree.tree_map(torch.clone, self.outputs)


class Asked(NamedTuple):
    """A call: what it is captured under, its function, its arguments and their leaves, what it reads and overwrites."""

    signature: Hashable
    name: str
    function: StepFunction
    inputs: Any
    leaves: list[Any]
    structure: Any
    at: list[int]
    overwritten: Sequence[torch.Tensor]

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.leaves[i] for i in self.at]

    def plain(self) -> Any:
        return self.function(self.inputs)


class Captures:
    """The captured step functions of one run at a time, ``limit`` at the most: the one unused for longest goes first.

    One that comes back after it had to go shows that more kinds of calls take turns than there is room for.  From then
    on those that are here stay and all others run without, so that no kind is captured more than once in a state.

    What cannot be captured runs as it is; the reason is in ``refused`` and is said once.

    Args:
        backend: what captures.
        limit: how many are kept.
        clock: if given, nobody has asked for graphs: only kinds of calls that it finds launch-bound are captured, and
            why others are not is for the trace alone.
    """

    def __init__(self, backend: Backend, limit: int = 32, clock: Clock | None = None):
        self.backend, self.limit, self.clock = backend, limit, clock
        self.refused: list[str] = []
        self._captured: OrderedDict[Hashable, Captured] = OrderedDict()
        self._known: OrderedDict[Hashable, Known] = OrderedDict()
        self._gone: set[Hashable] = set()  # what was captured and had to go
        self._state: Hashable = None
        self._failed = ""  # why capturing has failed in this state
        self._eager, self._why = False, ""  # whether this run goes without, and why
        self._crowded = False
        self._report = Report([])

    def __len__(self) -> int:
        return len(self._captured)

    @property
    def nbytes(self) -> int:
        """Bytes on the device: the arguments that graphs read, and what the backend's recordings hold."""
        inputs = (t for captured in self._captured.values() for t in captured.inputs)
        return sum(t.numel() * t.element_size() for t in inputs) + (self.backend.nbytes if self._captured else 0)

    def begin(self, state: Hashable, refusal: str | None = None) -> None:
        """To be called before a run: forgets what was captured in another ``state`` of models and buffers.

        Args:
            state: equal as long as weights and buffers stand where they stood.
            refusal: why nothing can be captured, where that is so.
        """
        state = (_surroundings(self.backend.device), state)
        if state != self._state:  # what failed may work now
            self.clear()
            self._state, self._failed, self._crowded = state, "", False
        self._eager, self._why = bool(self._failed), self._failed
        if refusal is not None:
            self._refuse(refusal)

    def tell(self, notes: list[str]) -> None:
        """A run begins whose notes these are: a line of them says what is captured, and why something is not."""
        self._report = Report(notes)
        if self._eager:
            self._report.refused(self._why)

    def clear(self) -> None:
        """Frees what was captured."""
        self._captured.clear()
        self._known.clear()
        self._gone.clear()
        self.backend.release()

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
        signature = (key, structure, tuple(_signature(leaf) for leaf in leaves))
        captured = self._captured.get(signature)
        if captured is None:
            name = str(key[0] if isinstance(key, tuple) else key)
            return self._unknown(Asked(signature, name, function, inputs, leaves, structure, at, overwritten))
        self._captured.move_to_end(signature)
        self._report.replayed()
        try:
            return captured.again([leaves[i] for i in at])
        except Exception as error:  # a graph that cannot be launched has done nothing
            self._fail(f"a captured step could not be replayed: {_said(error)}")
            return function(inputs)

    # -- what is not captured yet ------------------------------------------------------------------------------------

    def _unknown(self, asked: Asked) -> Any:
        """A call without a graph: it runs, is measured, or is captured by now."""
        known = self._known.get(asked.signature)
        if known is None:
            known = self._known[asked.signature] = Known()
            while len(self._known) > 8 * self.limit:  # constants that are others at every call
                self._known.popitem(last=False)
            if self.clock is not None:
                self._report.undecided()
            return asked.plain()
        self._known.move_to_end(asked.signature)
        if self.clock is not None and not known.look(self.clock):
            with on(_device(asked.tensors)):
                return known.timed(self.clock, asked.function, asked.inputs)
        if self.clock is not None and not known.bound:
            self._report.unbound(asked.name, known.share)
            return asked.plain()
        return self._captured_now(asked) if self._room_for(asked.signature) else asked.plain()

    def _room_for(self, signature: Hashable) -> bool:
        if len(self._captured) < self.limit:
            return True
        if signature in self._gone and not self._crowded:
            self._crowded = True
            reason = f"more than {self.limit} kinds of calls take turns: no others are captured"
            self._say(reason)
        if self._crowded:
            self._report.crowded(self.limit)
        return not self._crowded

    def _captured_now(self, asked: Asked) -> Any:
        """The results of the first replay; of the function itself where anything fails, with buffers as they were.

        This run then goes on without graphs.
        """
        places = {tensor.device for tensor in asked.tensors}
        if elsewhere := {place.type for place in places} - {self.backend.device}:
            self._fail(f"an argument of the model lies on {elsewhere.pop()}")
            return asked.plain()
        if len(places) > 1:
            self._fail(f"arguments of the model lie on {' and '.join(sorted(map(str, places)))}")
            return asked.plain()
        began, warmups, what = _now(), self.backend.warmups, "capturing failed"
        before: list[torch.Tensor] = []
        try:
            before = [t.clone() for t in asked.overwritten]
            try:
                captured = self._record(asked)
            finally:  # an interruption too
                _restore(asked.overwritten, before)
            what = "a captured step could not be replayed"
            result = captured.again(asked.tensors)
        except Exception as error:  # whatever it is, the step runs without
            _restore(asked.overwritten, before)
            self._fail(f"{what}: {_said(error)}")
            return asked.plain()
        self._captured[asked.signature] = captured
        while len(self._captured) > self.limit:
            self._gone.add(self._captured.popitem(last=False)[0])
        self._report.captured(self.backend.warmups - warmups, _now() - began, self.nbytes)
        return result

    def _record(self, asked: Asked) -> Captured:
        static = list(asked.leaves)
        for i in asked.at:
            static[i] = asked.leaves[i].clone()
        arguments = pytree.tree_unflatten(static, asked.structure)
        device = _device(asked.tensors)
        with on(device), random_as_it_was(device):
            replay, outputs = self.backend.capture(lambda: asked.function(arguments))
        return Captured([static[i] for i in asked.at], replay, outputs)

    # -- what goes wrong ---------------------------------------------------------------------------------------------

    def _fail(self, reason: str) -> None:
        """Refuses until models or buffers change, and holds nothing."""
        self._failed = reason
        self.clear()
        self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        """Runs eagerly until the next ``begin``."""
        self._eager, self._why = True, reason
        self._report.refused(reason)
        self._say(reason)

    def _say(self, reason: str) -> None:
        """Once, and only where graphs were asked for."""
        if self.clock is None and reason not in self.refused:
            self.refused.append(reason)
            warnings.warn(f"vaccel: running without CUDA graphs: {reason}", stacklevel=3)


def _restore(tensors: Sequence[torch.Tensor], contents: Sequence[torch.Tensor]) -> None:
    for tensor, kept in zip(tensors, contents, strict=False):  # none were kept where there was no memory for them
        tensor.copy_(kept)


def _said(error: Exception) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _device(tensors: Sequence[torch.Tensor]) -> torch.device | None:
    return tensors[0].device if tensors else None


def _signature(leaf: Any) -> Hashable:
    """What of an argument is fixed when a graph is captured."""
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    try:
        hash(leaf)
    except TypeError:
        return repr(leaf)
    return type(leaf), leaf  # True is 1, and 1 is 1.0


def _surroundings(device: str) -> Hashable:
    """Settings of the process and the thread that choose which kernels an operation runs."""
    sdp = torch.backends.cuda
    return (
        torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device), torch.are_deterministic_algorithms_enabled(),
        sdp.flash_sdp_enabled(), sdp.mem_efficient_sdp_enabled(), sdp.math_sdp_enabled(), sdp.cudnn_sdp_enabled(),
        torch._C._get_float32_matmul_precision(),
    )  # fmt: skip


def backend() -> Backend:
    """What captures on this machine.  Raises ``ValueError`` where nothing can."""
    if not torch.cuda.is_available():
        raise ValueError("cuda_graphs=True needs a CUDA device, and torch sees none here")
    return CudaBackend()


def clock() -> Clock:
    """What times forwards on this machine."""
    return CudaClock()
