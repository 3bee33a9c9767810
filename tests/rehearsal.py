"""Captures without a GPU: the operations of a step are recorded, and a replay runs those alone, from the tensors they
were recorded with into the same results.  As in a CUDA graph, no Python of the step runs again and nothing moves."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """Every operation that runs, with what it was given and what came of it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value is read on the host, where a stream that is captured has none yet")
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, tree_leaves(result)))
        return result

    def replay(self):
        for function, args, kwargs, kept in self.calls:
            for old, new in zip(kept, tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


class Rehearsal:
    """A backend for CPU tensors; counts what it captures, and holds what it recorded until it is released."""

    device = "cpu"

    def __init__(self):
        self.captured = self.replayed = self.warmups = self.nbytes = 0

    def release(self):
        self.nbytes = 0

    def capture(self, function):
        if not self.captured:
            self.warmups += 1
            function()
        self.captured += 1
        with Recording() as recording:
            outputs = function()
        kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tree_leaves(outputs)}
        self.nbytes += sum(kept.values())

        def replay():
            self.replayed += 1
            recording.replay()

        return replay, outputs
