"""Whoever reads how a model is built, or calls it whole, must find its own blocks in it."""

from __future__ import annotations

import threading
import weakref

from torch import nn

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def lock_of(model: nn.Module) -> threading.RLock:
    """One for every module: where hooks sit on it, its blocks are exchanged for the length of a call.

    To be held by whoever calls such a module, and by whoever walks through its blocks or weights.
    """
    return _locks.setdefault(model, threading.RLock())
