"""What decides a pipeline's runs: the method it was accelerated with, or another for the calls of one context."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from torch import nn

from ...methods import Method
from .auto import Pilot


@dataclasses.dataclass(frozen=True, eq=False)
class Ruling:
    """Attributes:
    method: what decides.
    smalls: the small models, by the number of the denoiser that each stands beside.
    notes: what every trace says.
    pilot: what chooses methods for ``Auto``.
    """

    method: Method
    smalls: Mapping[int, nn.Module]
    notes: tuple[str, ...] = ()
    pilot: Pilot | None = None


#: (session, what its calls in this thread or task are ruled by; None for the plain model), the latest last.
_IN_USE: ContextVar[tuple[tuple[Any, Ruling | None], ...]] = ContextVar("vaccel_ruling", default=())


def ruling_of(session: Any) -> Ruling | None:
    """What rules a session's calls in this thread or task."""
    return next((ruling for owner, ruling in reversed(_IN_USE.get()) if owner is session), session.ruling)


@contextlib.contextmanager
def using(session: Any, ruling: Ruling | None) -> Iterator[None]:
    """Within the context calls in this thread or task are ruled by another."""
    mine = (session, ruling)
    token = _IN_USE.set((*_IN_USE.get(), mine))
    try:
        yield
    finally:
        try:
            _IN_USE.reset(token)
        except ValueError:  # closed in another context than it was opened in, as by a generator
            _IN_USE.set(tuple(each for each in _IN_USE.get() if each is not mine))
