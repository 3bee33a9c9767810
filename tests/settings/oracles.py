"""What is right of every method, by loops that know nothing of vaccel: calls are exchanged at their classes.

A class's ``__call__`` is above every hook that a setting puts on a module, so that the same loops serve under all of
them.  Steps are told apart by the timestep of a call, branches by their order within a step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import vaccel

from .subjects import STEPS, Subject, generate

Call = Callable[..., Any]


@contextlib.contextmanager
def exchanged(modules: list[nn.Module], function: Callable[[nn.Module, Call, tuple, dict], Any]) -> Iterator[None]:
    """Calls of these modules go to ``function(module, own, args, kwargs)``."""
    kinds = {type(module) for module in modules}
    ours = {id(module) for module in modules}

    def call_of(own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if id(self) not in ours:
                return own(self, *args, **kwargs)
            return function(self, functools.partial(own, self), args, kwargs)

        return call

    before = {kind: vars(kind).get("__call__") for kind in kinds}
    for kind in kinds:
        kind.__call__ = call_of(kind.__call__)
    try:
        yield
    finally:
        for kind, own in before.items():
            if own is None:
                del kind.__call__
            else:
                kind.__call__ = own


class Letters:
    """A run in which the letter of every step says what its calls are given (``vaccel.actions``)."""

    def __init__(self, subject: Subject, pipe: Any, letters: str):
        self.subject, self.letters, self.module = subject, letters, subject.denoiser(pipe)
        self.lists = [getattr(self.module, name) for name in dict.fromkeys((subject.first, subject.last)) if name]
        self.blocks = [block for blocks in self.lists for block in blocks]
        self.step, self.time, self.branch = -1, None, 0
        self.last: dict[int, torch.Tensor] = {}  # by branch
        self.residual: dict[int, torch.Tensor] = {}
        self.state = self.delta = self.entered = None

    @property
    def letter(self) -> str:
        return self.letters[self.step]

    def call(self, module: nn.Module, own: Call, args: tuple, kwargs: dict) -> Any:
        """A call of the denoiser."""
        time = kwargs["timestep"] if "timestep" in kwargs else args[1]
        time = float(torch.as_tensor(time).double().flatten()[0])
        self.branch += 1
        if time != self.time:
            self.time, self.branch, self.step = time, 0, self.step + 1
        known = self.letters[self.step : self.step + 1]
        if known == "o":
            return (self.last[self.branch].clone(),)
        if known == "b" and self.branch:
            return (self.last[0] + self.delta,)
        (answer,) = own(*args, **kwargs)
        self.last[self.branch] = answer.clone(memory_format=torch.contiguous_format)
        if self.letter == "F" and self.branch:
            self.delta = self.last[1] - self.last[0]
        return (answer,)

    def block(self, block: nn.Module, own: Call, args: tuple, kwargs: dict) -> Any:
        """A call of a block."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if self.letter == "r":
            if block is self.blocks[-1]:
                hidden = hidden + self.residual[self.branch]
            return hidden if args else (kwargs["encoder_hidden_states"], hidden)
        if self.letter == "b" and block is self.blocks[0]:
            return self.state.clone()
        if block is self.blocks[0]:
            self.entered = hidden.clone()
        result = own(*args, **kwargs)
        out = result if isinstance(result, torch.Tensor) else result[1]
        if self.letter == "F" and block is self.blocks[0] and self.branch == 0:
            self.state = out.clone()
        if self.letter == "F" and block is self.blocks[-1]:
            self.residual[self.branch] = out - self.entered
        return result


class Tea(Letters):
    """TeaCache's own rule (arXiv 2411.19108) for the polynomial p(x) = x: steps are skipped while the relative changes
    of the timestep's embedding, as the forward itself computes it, add up to less than the threshold."""

    def __init__(self, subject: Subject, pipe: Any, threshold: float, steps: int):
        super().__init__(subject, pipe, "")
        self.threshold, self.steps, self.before, self.summed = threshold, steps, None, 0.0

    def embedded(self, embedder: nn.Module, own: Call, args: tuple, kwargs: dict) -> torch.Tensor:
        """A call of the timestep's embedder, which comes before the blocks."""
        found = own(*args, **kwargs)
        if self.branch == 0:
            skips = False
            if 0 < self.step < self.steps - 1:
                change = (found - self.before).abs().double().sum() / self.before.abs().double().sum()
                self.summed += float(change)
                skips = self.summed < self.threshold
            self.before, self.summed = found.clone(), self.summed if skips else 0.0
            self.letters += "r" if skips else "F"
        return found


def by_tea(
    subject: Subject, pipe: Any, threshold: float, steps: int = STEPS, **call: Any
) -> tuple[list[torch.Tensor], str]:
    """What TeaCache makes of the plain pipeline, and its timeline."""
    run = Tea(subject, pipe, threshold, steps)
    embedder = run.module.condition_embedder.time_embedder
    with exchanged([embedder], run.embedded), exchanged(run.blocks, run.block), exchanged([run.module], run.call):
        return generate(subject, pipe, steps, **call), run.letters


def by_letters(subject: Subject, pipe: Any, letters: str, steps: int = STEPS, **call: Any) -> list[torch.Tensor]:
    """What the plain pipeline makes of such steps; one that is interrupted makes fewer."""
    run = Letters(subject, pipe, letters)
    with contextlib.ExitStack() as stack:
        stack.enter_context(exchanged([run.module], run.call))
        if "r" in letters or "b" in letters:
            stack.enter_context(exchanged(run.blocks, run.block))
        return generate(subject, pipe, steps, **call)


def by_a_stand_in(
    subject: Subject, pipe: Any, other: Any, method: vaccel.methods.Method, steps: int = STEPS, **call: Any
) -> tuple[list[torch.Tensor], str]:
    """What the method makes of ``other``, a plain pipeline whose denoiser answers as that of ``pipe`` does.

    So the setting on ``pipe`` is out of the method's sight.  Also the run's timeline.
    """
    answers, own = subject.denoiser(pipe), subject.denoiser(other)
    own.forward = lambda *args, **kwargs: answers(*args, **kwargs)
    small = subject.small() if method.needs_small else None
    if small is not None:
        small.to(own.dtype)
    with vaccel.accelerate(other, method, small=small) as handle:
        found = generate(subject, other, steps, **call)
        timeline = handle.trace.timeline()
    del own.forward
    return found, timeline
