"""What a run works with: buffers, views of the models and captured steps; one run at a time has a workspace.

Runs one after another have the same one, so that buffers stay where they are and nothing is compiled or captured
twice; runs at the same time, in other threads or nested, have others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from torch import nn

from ...cache import Buffers
from ...cache.parked import Parking
from ...engine.graphs import Captures
from ...models import Family, model_of
from ...models.compiling import Compiler
from ...models.generic import Generic


class Workspace:
    """Of one run at a time.  ``captures`` are there once a run has asked for them."""

    def __init__(self, parking: Parking | None = None) -> None:
        self.buffers = Buffers(parking)
        self.captures: Captures | None = None
        self._models: list[Generic] = []

    def model(self, module: nn.Module, family: Family, *, small: bool, compiler: Compiler | None) -> Generic:
        """The module as the engine calls it; its views are kept from run to run."""
        for known in self._models:
            if known.model is module and known.family is family and known.is_small == small:
                known.compile_by(compiler)
                known.refresh()  # which looks at both
                return known
        made = model_of(module, family, small=small, compiler=compiler)
        self._models.append(made)
        return made

    def keep_only(self, models: list[Generic], also: Iterable[nn.Module] = ()) -> None:
        """Forgets modules that are no longer the pipeline's; those that ``also`` names may be used again."""
        kept = [id(model) for model in models], [id(module) for module in also]
        self._models = [m for m in self._models if id(m) in kept[0] or id(m.model) in kept[1]]

    @property
    def nbytes(self) -> int:
        """Bytes on the device: of buffers, and of captured steps with the memory they were recorded in."""
        return self.buffers.nbytes + (self.captures.nbytes if self.captures is not None else 0)

    def clear(self) -> None:
        """Frees buffers and captured steps."""
        self.buffers.clear()
        if self.captures is not None:
            self.captures.clear()


class Pool:
    """The workspaces of one accelerated pipeline and its shallow copies."""

    def __init__(self, make: Callable[[], Workspace]):
        self._make, self._lock, self._closed = make, threading.Lock(), False
        self.idle: list[Workspace] = []
        self.used: list[Workspace] = []

    def take(self) -> Workspace:
        with self._lock:
            workspace = self.idle.pop() if self.idle else self._make()
            self.used.append(workspace)
            return workspace

    def give_back(self, workspace: Workspace, *, whole: bool) -> None:
        """After a run; one that was aborted (not ``whole``) leaves nothing, and of those that wait only one does."""
        with self._lock:
            self.used.remove(workspace)
            if not whole or self._closed or any(waiting.nbytes for waiting in self.idle):
                workspace.clear()
            if self._closed:
                return
            self.idle.append(workspace)
            self.idle.sort(key=lambda w: w.buffers.nbytes)

    @property
    def nbytes(self) -> int:
        with self._lock:
            return sum(w.nbytes for w in (*self.idle, *self.used))

    def close(self) -> None:
        """Nothing waits any more; what a run is still using goes when it is given back."""
        with self._lock:
            self._closed = True
            for workspace in self.idle:
                workspace.clear()
            self.idle = []
