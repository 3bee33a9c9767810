"""Attention that quantises is tried on each model before it is used: its error is measured, or why it cannot run.

Where a run asks a model for its first forward, two are made, one with exact attention and one with the backend in
question.  The run takes the one that it is to have where it needs nothing but the output, and makes its own where it
stores what is inside or is compiled or captured; what is made beside does not count among its calls.  Weights that
have changed since (a LoRA, another checkpoint, an expert) are tried anew as the next run opens.  A backend that is
refused leaves the model as it was: every output is bit for bit the exact one's.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...capture import random_as_it_was
from ...models.generic import Generic
from ...models.structures import tensors_of
from ...models.weights_digest import digest
from . import ownership
from .together import refused as refusal

#: Through which of its methods the engine asks a model for a forward that is its first.
FORWARDS = ("full", "recording")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the trial on one model has shown.

    Attributes:
        label: which model it is, in words.
        weights: the digest of those that it had.
        error: relative L2 error of its output; None where there was no output.
        refused: why the backend is not used; empty where it is.
    """

    label: str
    weights: str
    error: float | None
    refused: str

    def said(self, backend: str, bound: float) -> str:
        """In a line."""
        if self.refused:
            return f"attention: {backend} refused on the {self.label}: {self.refused}; it computes with exact attention"
        return f"attention: {backend} on the {self.label}: relative error {self.error:.2g}, allowed {bound:g}"


class Trials:
    """The trials of one backend on the models of one pipeline.

    Args:
        places: attention processors, and the exact backend that each goes back to.
        backend: the dispatcher's member.
        bound: the largest relative error that is accepted.
    """

    def __init__(self, places: Sequence[tuple[Any, Any]], backend: Any, bound: float):
        self.backend, self.bound, self.over = backend, bound, False
        self._exact = {id(processor): (processor, exact) for processor, exact in places}
        self._known: weakref.WeakKeyDictionary[nn.Module, Verdict] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        for processor, exact in places:  # until it is known better
            processor._attention_backend = exact

    @property
    def verdicts(self) -> list[Verdict]:
        """Those of every model that was tried, with its present weights."""
        return list(self._known.values())

    @property
    def notes(self) -> list[str]:
        """The verdicts in words, a line each."""
        return [verdict.said(self.backend.value, self.bound) for verdict in self.verdicts]

    def watch(self, model: Generic, label: str) -> None:
        """To be called as a run opens: the model's next forward decides, unless its weights were tried already."""
        mine = self._processors(model.model)
        if self.over or not mine:
            return
        weights = digest(model.model)
        known = self._known.get(model.model)
        _unwrap(model)
        if known is not None and known.weights == weights:
            return
        self._known.pop(model.model, None)
        for processor, exact in mine:
            processor._attention_backend = exact
        for name in FORWARDS:
            model.__dict__[name] = functools.partial(self._first, model, label, weights, name)

    def undo(self) -> None:
        """Nothing is tried any more."""
        self.over = True

    def _processors(self, model: nn.Module) -> list[tuple[Any, Any]]:
        """The processors of a model that this is about, with their exact backends; experts share a model's."""
        found = (getattr(module, "processor", None) for module in model.modules())
        return [self._exact[id(processor)] for processor in found if id(processor) in self._exact]

    def _first(self, model: Generic, label: str, weights: str, name: str, inputs: Any, *rest: Any) -> torch.Tensor:
        """In the place of a model's method: decides, then does what was asked for."""
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():  # too late to read an error
            return getattr(type(model), name)(model, inputs, *rest)
        _unwrap(model)
        with self._lock:
            known = self._known.get(model.model)
            if not self.over and (known is None or known.weights != weights):
                answer = self._decide(model, label, weights, inputs)
                if name == "full" and not (model.is_small or model.compiler is not None) and model.layout is not None:
                    model.looked = inputs, answer  # which is then what ``full`` gives
        return getattr(model, name)(inputs, *rest)

    def _decide(self, model: Generic, label: str, weights: str, inputs: Any) -> Any:
        """Tries the backend on a model; the answer to ``inputs`` by the attention that it has from now on."""
        mine, looked, other, error, refused = self._processors(model.model), model.looked, None, None, ""
        values = inputs.values() if isinstance(inputs, dict) else inputs
        devices = {v.device for v in values if isinstance(v, torch.Tensor)}
        with torch.no_grad(), random_as_it_was(*devices):
            exact = looked[1] if looked is not None and looked[0] is inputs else model.outright(inputs)
            try:
                self._use(mine, quantised=True)
                other = model.outright(inputs)
                error = relative_error(other, exact)
                if not error <= self.bound:  # so that what is no number is refused
                    refused = f"relative error {error:.2g}, allowed {self.bound:g}"
            except Exception as failure:  # kernels refuse head sizes, masks and cards in many ways
                said = str(failure).strip().splitlines() or [type(failure).__name__]
                refused = f"it failed ({said[0][:160]})"
            finally:
                self._use(mine, quantised=False)
        scope = ownership.CURRENT.get()
        refused = refusal(None if scope is None else scope.agreement, label, refused)
        verdict = self._known[model.model] = Verdict(label, weights, error, refused)
        self._use(mine, quantised=not self._refused_among(mine))
        self._say(verdict)
        return exact if refused else other

    def _refused_among(self, mine: list[tuple[Any, Any]]) -> bool:
        """Whether a model that has these processors has refused: experts that share them have one attention."""
        ours = {id(processor) for processor, _ in mine}
        return any(
            verdict.refused and any(id(p) in ours for p, _ in self._processors(model))
            for model, verdict in self._known.items()
        )

    def _use(self, places: list[tuple[Any, Any]], *, quantised: bool) -> None:
        for processor, exact in places:
            processor._attention_backend = self.backend if quantised else exact

    def _say(self, verdict: Verdict) -> None:
        line = verdict.said(self.backend.value, self.bound)
        scope = ownership.CURRENT.get()
        if scope is not None and scope.run is not None:
            scope.run.trace.notes.append(f"{line} (measured by two forwards)")
        if verdict.refused:
            warnings.warn(f"vaccel: {line}", stacklevel=3)


def relative_error(answer: Any, exact: Any) -> float:
    """The L2 norm of the difference by that of the exact answer: of the worst sample of the worst tensor."""
    worst = 0.0
    for one, other in zip(tensors_of(answer), tensors_of(exact), strict=True):
        if not other.is_floating_point() or not other.numel():
            continue
        rows = len(other) if other.ndim > 1 else 1
        one, other = (t.detach().float().reshape(rows, -1) for t in (one, other))
        errors = torch.linalg.vector_norm(one - other, dim=1) / torch.linalg.vector_norm(other, dim=1)
        errors = torch.where((one == other).all(dim=1), torch.zeros_like(errors), errors)
        here = float(errors.max())  # NaN where one is
        worst = here if here != here or here > worst else worst
        if worst != worst:
            break
    return worst


def _unwrap(model: Generic) -> None:
    for name in FORWARDS:
        model.__dict__.pop(name, None)
