"""A setting on a pipeline, cell by cell: every order with every method against the oracles."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn

import vaccel
from vaccel.methods import Method

from .base import ORDERS, Setting
from .oracles import by_a_stand_in, by_letters, by_tea
from .subjects import STEPS, SUBJECTS, Subject, generate, methods

Tensors = list[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What became of one setting, in one order, with one method on one pipeline: "right", "refused" or "wrong"."""

    setting: str
    pipe: str
    order: str
    method: str
    outcome: str
    said: str = ""


@functools.cache
def prototype(name: str) -> Any:
    return SUBJECTS[name].build()


def built(setting: Setting, subject: Subject, *, applied: bool) -> Any:
    """A pipeline of its own, with the setting or with what comes before it."""
    pipe = copy.deepcopy(prototype(subject.name))
    if setting.first is not None:
        setting.first(pipe)
    if applied and setting.apply is not None:
        setting.apply(pipe)
    return pipe


def same(a: Tensors, b: Tensors) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and x.dtype == y.dtype and bool(torch.equal(x, y)) for x, y in zip(a, b, strict=True)
    )


class Right:
    """What is right under a setting; asked for by method and, where decisions are the method's own, by timeline."""

    def __init__(self, setting: Setting, subject: Subject, folder: str):
        self.setting, self.subject, self.folder = setting, subject, folder
        self._known: dict[Any, Any] = {}

    def call(self) -> Mapping[str, Any]:
        return self.setting.call(self.subject.name) if self.setting.call is not None else {}

    def made(self, pipe: Any, steps: int = STEPS) -> Tensors:
        """A run under the setting."""
        with self.setting.around():
            return generate(self.subject, pipe, steps, **self.call())

    def plain(self, steps: int = STEPS) -> Tensors:
        return self._of(("plain", steps), lambda: self.made(self._pipe(), steps))

    def letters(self, letters: str) -> Tensors:
        def make() -> Tensors:
            with self.setting.around():
                return by_letters(self.subject, self._pipe(), letters, **self.call())

        return self._of(letters, make)

    def tea(self, method: Any, steps: int) -> tuple[Tensors, str]:
        def make() -> Any:
            with self.setting.around():
                return by_tea(self.subject, self._pipe(), method.threshold, steps, **self.call())

        return self._of("tea", make)

    def stand_in(self, method: Method, steps: int) -> Tensors:
        def make() -> Tensors:
            other = built(self.setting, self.subject, applied=self.setting.wide)
            with self.setting.around():
                return by_a_stand_in(self.subject, self._pipe(), other, method, steps, **self.call())[0]

        return self._of((method, steps), make)

    def expected(self, name: str, method: Method, steps: int, trace: vaccel.engine.trace.Trace) -> Tensors:
        """What a run with this trace should have made."""
        if name == "everything":
            return self.plain()
        if name == "TeaCache":
            made, timeline = self.tea(method, steps)
            assert trace.timeline() == timeline, f"it took {trace.timeline()} where the rule says {timeline}"
            return made
        if name in ("outputs", "blocks", "resume"):
            return self.letters(trace.timeline())
        if name == "Auto":
            method = trace.as_schedule()
        return self.stand_in(method, steps)

    def _pipe(self) -> Any:
        """Plain, with the setting; without it where that changes nothing, so that one oracle serves many settings."""
        return built(self.setting, self.subject, applied=not self.setting.neutral)

    def _of(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


#: Neutral settings without a call of their own share what is right.
_SHARED: dict[str, Right] = {}


def right_of(setting: Setting, subject: Subject, folder: str) -> Right:
    own = Right(setting, subject, folder)
    if setting.neutral and setting.first is None and setting.call is None:
        shared = _SHARED.setdefault(subject.name, own)
        own._known = shared._known
    return own


def state_of(pipe: Any, subject: Subject, given: tuple[str, ...]) -> list[tuple[str, type, tuple[str, ...], str]]:
    """What ``remove`` has to give back of the denoiser: every module's class, attributes and forward."""
    found = []
    for name, module in subject.denoiser(pipe).named_modules():
        # A call of a pipeline leaves empty registries behind, accelerated or not.
        empty = {"_diffusers_hook"} if not getattr(vars(module).get("_diffusers_hook"), "hooks", None) else set()
        own = tuple(sorted(k for k in vars(module) if k not in given and k not in empty))
        forward = vars(module).get("forward")
        found.append((name, type(module), own, _described(forward), *(_kinds(v) for v in _hooks(module))))
    return [(str(type(pipe)), type(pipe), tuple(sorted(vars(pipe))), ""), *found]


def _described(forward: Any) -> str:
    inner = getattr(forward, "func", forward)
    return getattr(inner, "__qualname__", type(inner).__name__)


def _hooks(module: nn.Module) -> list[Any]:
    registry = vars(module).get("_diffusers_hook")
    return [vars(module).get("_hf_hook"), list(registry.hooks) if registry is not None else []]


def _kinds(value: Any) -> str:
    return str(value) if isinstance(value, list) else type(value).__name__


def cells(setting: Setting, pipe_name: str, orders: tuple[str, ...] = ORDERS) -> list[Cell]:
    """Every cell of a setting on one pipeline."""
    subject, found = SUBJECTS[pipe_name], []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _backend_kept():
        warnings.simplefilter("ignore")
        right = right_of(setting, subject, folder)
        chosen = {
            name: how
            for name, how in methods(subject, folder).items()
            if (setting.methods is None or name in setting.methods) and name not in setting.skip
        }
        under = _plain_under(setting, subject, right)
        for order in (one for one in orders if one in setting.orders):
            for name, (method, steps) in chosen.items():
                outcome, said = _examined(setting, subject, order, name, method, steps, right, under)
                found.append(Cell(setting.name, pipe_name, order, name, outcome, said))
    return found


@contextlib.contextmanager
def _backend_kept() -> Iterator[None]:
    """diffusers' attention backend of the whole process as it was: to set a model's own sets that one too."""
    active, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        yield
    finally:
        _AttentionBackendRegistry.set_active_backend(active)


def _plain_under(setting: Setting, subject: Subject, right: Right) -> tuple[list[Any], Tensors]:
    """The state of a plain pipeline with the setting after a run, and what it makes."""
    pipe = built(setting, subject, applied=True)
    made = right.made(pipe)
    if setting.neutral and not same(made, right.plain()):
        raise AssertionError(f"{setting.name} is not neutral on {subject.name}: the plain pipeline differs without it")
    return state_of(pipe, subject, setting.given), made


def _examined(
    setting: Setting, subject: Subject, order: str, name: str, method: Method, steps: int, right: Right,
    under: tuple[list[Any], Tensors],
) -> tuple[str, str]:  # fmt: skip
    """(outcome, what there is to say)."""
    expected, refused = setting.refusal(order, name), None
    pipe, made_at = built(setting, subject, applied=order == "before"), []
    small = subject.small() if method.needs_small else None
    if small is not None and setting.wide and setting.apply is not None:
        small.to(subject.denoiser(built(setting, subject, applied=True)).dtype)
    try:
        try:
            made, trace = _accelerated(setting, pipe, order, method, steps, small, right, made_at)
        except ValueError as error:
            if expected is None or not re.search(expected, str(error)):
                raise
            refused = str(error)
            if order != "before" and setting.apply is not None and not made_at:
                setting.apply(pipe)
        else:
            if expected is not None:
                return "wrong", "should have been refused"
            if not same(made, right.expected(name, method, steps, trace)):
                return "wrong", f"not what it should be ({trace.timeline()})"
        if state_of(pipe, subject, setting.given) != under[0] and refused is None:
            return "wrong", f"remove() leaves another pipeline: {_difference(under[0], pipe, subject, setting)}"
        if (refused or name in ("everything", "blocks")) and not same(right.made(pipe), under[1]):
            return "wrong", "after remove() the pipeline is another"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "wrong", f"{type(error).__name__}: {error} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"
    return ("refused", refused) if refused is not None else ("right", "")


def _accelerated(
    setting: Setting, pipe: Any, order: str, method: Method, steps: int, small: Any, right: Right, made_at: list[str]
) -> tuple[Tensors, Any]:
    """What the accelerated pipeline makes under the setting, and its trace; the handle is removed at the end.

    ``made_at`` is told once the setting is made.
    """
    with vaccel.accelerate(pipe, method, small=small) as handle:
        if order == "between":
            first = generate(right.subject, pipe, steps)
            assert all(bool(torch.isfinite(t).all()) for t in first)
        if order != "before" and setting.apply is not None:
            made_at.append(order)
            setting.apply(pipe)
        return right.made(pipe, steps), handle.trace


def _difference(expected: list[Any], pipe: Any, subject: Subject, setting: Setting) -> str:
    now = state_of(pipe, subject, setting.given)
    for a, b in zip(expected, now, strict=False):
        if a != b:
            return f"{a[0] or 'root'}: {[(x, y) for x, y in zip(a[1:], b[1:], strict=False) if x != y]}"[:300]
    return f"{len(expected)} modules, now {len(now)}"
