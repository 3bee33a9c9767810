"""Forwards of several requests as one: rows joined, answers taken apart, and one that fails left alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch


class Ask:
    """One forward that a request asks for, and its answer once it is there."""

    __slots__ = ("answer", "error", "inputs", "least", "model")

    def __init__(self, model: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, torch.Tensor, Any], least: int):
        self.model, self.inputs, self.least = model, inputs, least
        self.answer: torch.Tensor | None = None
        self.error: Exception | None = None

    @property
    def rows(self) -> int:
        return len(self.inputs[0])


class Answering:
    """A model as one request's run calls it: answers that were made beforehand, else a forward alone.

    Forwards have ``least`` rows or more, the last one repeated.
    """

    def __init__(self, model: Callable[..., torch.Tensor], least: int = 0):
        self.model, self.least = model, least
        self._expected: list[Ask] = []

    def expect(self, inputs: tuple[torch.Tensor, torch.Tensor, Any]) -> Ask:
        """That the run's step is going to call with these."""
        self._expected.append(Ask(self.model, inputs, self.least))
        return self._expected[-1]

    def forget(self) -> None:
        self._expected.clear()

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
        for place, ask in enumerate(self._expected):
            if all(given is known for given, known in zip((x, t, condition), ask.inputs, strict=True)):
                del self._expected[place]
                if ask.error is not None:
                    raise ask.error
                if ask.answer is not None:
                    return ask.answer
        return _forward(self.model, [(x, t, condition)], self.least)


def answer_together(asks: Sequence[Ask], most: int | None) -> None:
    """Answers every ask, those that fit each other in one forward of at most ``most`` rows."""
    groups: dict[Hashable, list[Ask]] = {}
    for ask in asks:
        x, t, condition = ask.inputs
        try:
            key = (id(ask.model), x.shape[1:], x.dtype, x.device, t.dtype, _form(condition, ask.rows))
            groups.setdefault(key, []).append(ask)
        except TypeError:  # a condition that says nothing of its form goes alone
            groups[id(ask)] = [ask]
    for group in groups.values():
        for chunk in _chunks(group, most):
            _answer(chunk)


def _chunks(group: list[Ask], most: int | None) -> list[list[Ask]]:
    chunks: list[list[Ask]] = [[]]
    rows = 0
    for ask in group:
        if chunks[-1] and most is not None and rows + ask.rows > most:
            chunks.append([])
            rows = 0
        chunks[-1].append(ask)
        rows += ask.rows
    return chunks


def _answer(chunk: list[Ask]) -> None:
    """One forward for all; where it raises, one for each, to see whose fault it is."""
    error = _tried(chunk)
    if error is None:
        return
    if len(chunk) == 1:
        chunk[0].error = error
        return
    del error  # and with its traceback what the forward has left behind
    for ask in chunk:
        ask.error = _tried([ask])


def _tried(chunk: list[Ask]) -> Exception | None:
    try:
        answer = _forward(chunk[0].model, [ask.inputs for ask in chunk], chunk[0].least)
    except Exception as error:
        return error
    for ask, rows in zip(chunk, answer.split([ask.rows for ask in chunk]), strict=True):
        ask.answer = rows
    return None


def _forward(model: Callable[..., torch.Tensor], given: Sequence[tuple], least: int) -> torch.Tensor:
    """The model's answer to these inputs, joined.  With fewer rows than ``least`` the last one is repeated."""
    sizes = [len(x) for x, _, _ in given]
    rows, missing = sum(sizes), max(least - sum(sizes), 0)
    joined = [_joined([inputs[n] for inputs in given], sizes, missing) for n in range(3)]
    answer = model(*joined)
    if not isinstance(answer, torch.Tensor) or answer.ndim < 1 or len(answer) != rows + missing:
        shape = list(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise ValueError(f"the model answers {rows + missing} rows with {shape}: it must give as many rows of a tensor")
    return answer[:rows] if missing else answer


def _form(value: Any, rows: int) -> Hashable:
    """What two conditions must have in common to be joined.  Raises ``TypeError`` for what cannot be compared."""
    if isinstance(value, torch.Tensor):
        if value.ndim and len(value) == rows:
            return value.shape[1:], value.dtype, value.device
        raise TypeError("a tensor that is not by rows")
    if isinstance(value, dict):
        return "dict", tuple((name, _form(value[name], rows)) for name in value)
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(_form(one, rows) for one in value)
    hash(value)
    return type(value), value


def _joined(values: list[Any], sizes: list[int], missing: int) -> Any:
    """The values of several requests as one, along their rows."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        if not first.ndim or len(first) != sizes[0]:
            return first  # of a request that goes alone
        if missing:
            values = [*values, values[-1][-1:].expand(missing, *first.shape[1:])]
        return first if len(values) == 1 else torch.cat(values)
    if isinstance(first, dict):
        return {name: _joined([value[name] for value in values], sizes, missing) for name in first}
    if isinstance(first, (list, tuple)):
        parts = [_joined(list(each), sizes, missing) for each in zip(*values, strict=True)]
        return parts if isinstance(first, list) else tuple(parts)
    return first
