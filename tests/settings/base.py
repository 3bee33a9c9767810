"""What a setting is, and the list of all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

#: Name -> setting, in the order in which they are defined.
SETTINGS: dict[str, Setting] = {}
#: When a setting is made: before ``accelerate``; after it; after a first accelerated run.
ORDERS = ("before", "after", "between")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One thing that a user does to a pipeline, or to its call.

    Args:
        name: in words.
        group: the heading in the table.
        apply: makes the setting on a pipeline; None where it is made by the call's arguments alone.
        first: what is done to the pipeline as it is built, whatever the order (adapters that ``apply`` switches).
        pipes: names of the subjects that it is tried on.
        orders: those of ``ORDERS`` that mean something for it.
        neutral: whether it changes no bit of what the plain pipeline computes, so that every method is also held to
            what it gives without the setting.
        call: arguments of the pipeline's call that belong to it, by subject; functions make new ones for every call.
        around: makes the context that calls are made in.
        wide: whether it is about the whole pipeline (its dtype), so that the stand-in pipeline of the oracle needs it.
        methods: names of the methods it is tried with; None for all that the subject has.
        skip: method -> why it is left out.
        refuses: (order, method) -> what the refusal says; "*" stands for any.
        needs: modules that must be installed.
        fast: whether ``make fast`` runs it, on Flux.
        recipe: how a user writes it, in a few words of code.
        given: the state that outlives a run and that ``remove`` is not held to: attributes of the denoiser.
    """

    name: str
    group: str
    apply: Callable[[Any], None] | None = None
    first: Callable[[Any], None] | None = None
    pipes: tuple[str, ...] = ("wan", "flux", "sd")
    orders: tuple[str, ...] = ORDERS
    neutral: bool = False
    call: Callable[[str], Mapping[str, Any]] | None = None
    around: Callable[[], Any] = contextlib.nullcontext
    wide: bool = False
    methods: tuple[str, ...] | None = None
    skip: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refuses: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    fast: bool = False
    recipe: str = ""
    given: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name in SETTINGS:
            raise ValueError(f"{self.name} is there twice")
        SETTINGS[self.name] = self

    @property
    def missing(self) -> list[str]:
        """Modules it needs that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def refusal(self, order: str, method: str) -> str | None:
        """What a refusal in this cell says; None where none is expected."""
        for key in ((order, method), (order, "*"), ("*", method), ("*", "*")):
            if key in self.refuses:
                return self.refuses[key]
        return None


def load_all() -> dict[str, Setting]:
    """Every setting of this folder's files."""
    for module in pkgutil.iter_modules([str(p) for p in importlib.import_module(__package__).__path__]):
        importlib.import_module(f"{__package__}.{module.name}")
    return SETTINGS
