"""Whose call it is: runs belong to the call of the pipeline that opened them, found through a context variable.

An accelerated pipeline object is given a subclass of its own class, of the same name, whose ``__call__`` opens a scope
and closes it when the call returns or raises.  Its transformers are given one too, whose ``__call__`` asks whether a
scope is open that they belong to; without one they are the plain model.  Threads and tasks have scopes of their own.
No class that anybody else uses is touched, no attribute of a module is set, and copies are as they would be without:
a shallow copy of a pipeline is accelerated like the original, a deep or pickled one is plain.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch import nn

from ...models.generic import hooked
from ...models.locks import lock_of
from .ruling import ruling_of

#: Where a pipeline object keeps who accelerates it.
OWNER = "_vaccel_owner"
#: The innermost open scope of this thread or task.
CURRENT: ContextVar[Any] = ContextVar("vaccel_scope", default=None)

_lock = threading.RLock()
_made: set[int] = set()  # the classes made here, by their ids: they are kept for good
_owned: dict[type, type] = {}
_listening: dict[type, type] = {}
_listeners: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def _new(kind: type, *args: Any) -> Any:
    return kind.__new__(kind, *args)


def _subclass(base: type, members: dict[str, Any]) -> type:
    """A subclass that passes for ``base``: the same names, pickled and deeply copied as an instance of it."""

    def reduce(self: Any, protocol: Any) -> Any:
        function, args, *rest = base.__reduce_ex__(self, protocol)
        if function is copyreg.__newobj__:  # which pickle holds to the object's own class
            function, args = _new, (base, *args[1:])
        if rest and isinstance(rest[0], dict):
            rest[0] = {k: v for k, v in rest[0].items() if k != OWNER}
        return (function, args, *rest)

    # diffusers compares the exact classes of components where a pipeline is made from another one (from_pipe).
    same = {"__eq__": lambda cls, other: other is cls or other is base, "__hash__": lambda cls: hash(base)}
    meta = type(type(base).__name__, (type(base),), same)
    named = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    made = meta(base.__name__, (base,), {**named, "__reduce_ex__": reduce, **members})
    _made.add(id(made))
    return made


def _owned_class(base: type) -> type:
    if base not in _owned:

        @functools.wraps(base.__call__)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            owner = self.__dict__.get(OWNER)
            if owner is None or owner.removed:
                return base.__call__(self, *args, **kwargs)
            if ruling_of(owner) is None:
                with plainly():
                    return base.__call__(self, *args, **kwargs)
            with owner.scope(self, args, kwargs) as scope:
                return base.__call__(self, *args, **scope.given(kwargs))

        def shallow(self: Any) -> Any:
            new = object.__new__(type(self))
            new.__dict__.update(self.__dict__)
            return new

        _owned[base] = _subclass(base, {"__call__": call, "__copy__": shallow})
    return _owned[base]


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Calls of transformers are plain while the context lasts."""
    token = CURRENT.set(None)
    try:
        yield
    finally:
        CURRENT.reset(token)


def own(pipe: Any, owner: Any) -> None:
    """Calls of this pipeline object open scopes of ``owner``.

    Raises ``ValueError`` where somebody owns it already.
    """
    with _lock:
        now = pipe.__dict__.get(OWNER)
        if now is not None and not now.removed:
            raise ValueError(f"this {type(pipe).__name__} is accelerated already: call remove() on its handle first")
        base = base_of(pipe)
        if "__call__" in {name for kind in base.__mro__ for name in vars(kind)}:  # else only handle.run() opens runs
            _become(pipe, _owned_class(base))
        pipe.__dict__[OWNER] = owner


def _become(thing: Any, kind: type) -> None:
    try:
        object.__setattr__(thing, "__class__", kind)
    except TypeError as error:  # a class with slots or of another layout
        raise ValueError(
            f"calls of a {base_of(thing).__name__} cannot be taken over ({error}): for a loop of your own there is "
            "vaccel.Denoiser"
        ) from None


def disown(pipe: Any) -> None:
    """Gives the pipeline object its class back."""
    with _lock:
        pipe.__dict__.pop(OWNER, None)
        object.__setattr__(pipe, "__class__", base_of(pipe))


def base_of(thing: Any) -> type:
    """The class that a pipeline or a module had before."""
    kind = type(thing)
    return kind.__mro__[1] if id(kind) in _made else kind


def _listening_class(base: type) -> type:
    if base not in _listening:

        @functools.wraps(base.__call__)
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            scope = CURRENT.get()
            if scope is not None:
                return scope.call(self, args, kwargs)
            if not hooked(self):
                return base.__call__(self, *args, **kwargs)
            with lock_of(self):  # another thread's run may have other blocks in it for the length of a call
                return base.__call__(self, *args, **kwargs)

        _listening[base] = _subclass(base, {"__call__": call})
    return _listening[base]


def listen(module: nn.Module) -> None:
    """From now on the module asks for open scopes; to be undone by ``unlisten``, once for each time."""
    with _lock:
        count = _listeners.get(module, 0)
        if not count:
            _become(module, _listening_class(type(module)))
        _listeners[module] = count + 1


def unlisten(module: nn.Module) -> None:
    with _lock:
        count = _listeners.pop(module, 0)
        if count > 1:
            _listeners[module] = count - 1
        elif count:
            module.__class__ = base_of(module)


def plain_call(module: nn.Module) -> Any:
    """The module's own ``__call__``, past any scope."""
    return functools.partial(base_of(module).__call__, module)
