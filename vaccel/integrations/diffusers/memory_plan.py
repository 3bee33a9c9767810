"""How many bytes a call's caches will hold: the call itself is made, in buffers that nobody else has.

Every model is computed once for each branch, and its answers are repeated after that: loops, branches, shapes and
precisions are those of the call, whatever the pipeline, and no more than the first step is paid for.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ... import deprecated
from ...actions import Full
from ...cache.buffers import HOST
from ...methods import Method, Policy, RunInfo
from . import ownership
from .ruling import ruling_of
from .scope import Scope
from .workspace import Workspace

#: Arguments by which text is given; one of them is enough.
TEXTS = ("prompt", "prompt_embeds")


def planned(session: Any, call: Mapping[str, Any]) -> dict[str, int]:
    """Bytes that such a call of the session's pipeline will hold, by what they are for, and under "total" in all."""
    pipe = session.pipe
    base = ownership.base_of(pipe)
    if "__call__" not in {name for kind in base.__mro__ for name in vars(kind)}:
        raise ValueError(f"a {base.__name__} has no call of its own: nothing can be planned for it")
    ruling = ruling_of(session)
    if ruling is None or not (ruling.method.stores or ruling.method.watches or ruling.method.adaptive):
        return {"total": 0}
    known = inspect.signature(base.__call__).parameters
    given, scope = _arguments(known, call), None
    with _quietly(pipe):
        try:
            scope = Rehearsal(session, pipe, given)
            sizes = _sizes(scope, base)
        except (TypeError, ValueError):
            # It may be that it only wants a text; a call that got as far as its models has failed for another reason.
            if scope.run is not None or "prompt" not in known or any(name in given for name in TEXTS):
                raise
            sizes = _sizes(Rehearsal(session, pipe, {**given, "prompt": ""}), base)
    return {**sizes, "total": sum(size for name, size in sizes.items() if name != HOST)}


def _sizes(scope: Rehearsal, base: type) -> dict[str, int]:
    with scope:
        base.__call__(scope.pipe, **scope.given(scope.given_arguments))
    return scope.sizes()


def _arguments(known: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments, with latents for what comes out of it."""
    given = dict(call)
    for old in [name for name in ("guidance", "batch") if name in given and name not in known]:
        value = given.pop(old)
        warnings.warn(deprecated.note("Handle.memory_plan", old), DeprecationWarning, stacklevel=4)
        if old == "batch":
            several = [name for name in known if name.startswith("num_") and name.endswith("_per_prompt")]
            given |= dict.fromkeys(several[:1], value)
        elif not value:
            given.setdefault("guidance_scale", 1.0)
    if "output_type" in known:
        given.setdefault("output_type", "latent")
    return given


@contextmanager
def _quietly(pipe: Any) -> Iterator[None]:
    """No progress is shown, and the random numbers of the caller's own runs are what they would have been."""
    shown = pipe.__dict__.get("_progress_bar_config")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            pipe.__dict__["_progress_bar_config"] = {**(shown or {}), "disable": True}
            yield
        finally:
            if shown is None:
                del pipe.__dict__["_progress_bar_config"]
            else:
                pipe.__dict__["_progress_bar_config"] = shown


class Rehearsal(Scope):
    """A call in which all steps are computed as far as stores and signals know, and that nobody hears of."""

    falls_back = False

    def __init__(self, session: Any, pipe: Any, kwargs: dict[str, Any]):
        super().__init__(session, pipe, (), kwargs, None)
        self.traces: list[Any] = []
        self.given_arguments = kwargs
        self._pilot, self.observed, self._timed = None, False, False
        self._kept: dict[str, int] = {}  # what policies keep
        self.answer: torch.Tensor | None = None  # the models' latest

    def take(self) -> Workspace:
        return self.session.workspace()

    def give_back(self, whole: bool) -> None:
        pass

    def captures(self) -> tuple[None, str]:
        return None, ""

    def decided_by(self, method: Method) -> Any:
        self._method = method
        return _Computing(method)

    def __enter__(self) -> Rehearsal:
        super().__enter__()
        if self.session.experts is None:  # whose models other runs have too
            for stage in self.stages.values():
                for model in (stage.large, stage.small):
                    if model is not None:
                        self._once(model)
        return self

    def call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        answer = super().call(module, args, kwargs)
        run = self.run
        if run is None:
            return answer
        for call in run.calls_bound.values():
            if call.small_residual is not None and call.small_residual.buffer is None:
                call.compute_small()
        if self.answer is not None and run.index == 0:  # policies keep what is like the latents of the whole loop
            sample = self.answer[run.first_call.half :].to("meta")
            self._kept |= {name: _nbytes(t) for name, t in self._method.keeps(sample).items()}
        return answer

    def _once(self, model: Any) -> None:
        """The model computes what it was not asked for yet, or where buffers are made; else it repeats itself."""
        known: dict[Any, torch.Tensor] = {}  # by the call's place in its step, and its shape
        full, recording = model.full, getattr(model, "recording", None)

        def repeated(inputs: Any, unmade: bool, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
            which = self.run.calls, model.latents(inputs).shape
            if unmade or which not in known:
                known[which] = compute().clone()
            self.answer = known[which]
            return known[which].clone()  # pipelines write into what they are given

        model.full = lambda inputs: repeated(inputs, False, lambda: full(inputs))
        if recording is not None:

            def record(inputs: Any, residual: Any, states: Any) -> torch.Tensor:
                unmade = residual is not None and residual.buffer is None
                unmade = unmade or any(state.hidden is None for state in states.values())
                return repeated(inputs, unmade, lambda: recording(inputs, residual, states))

            model.recording = record

    def sizes(self) -> dict[str, int]:
        """Bytes by the names of what holds them."""
        return {**self.workspace.buffers.sizes(), **self._kept}


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Computing:
    """A method whose every step is computed; stores, signals and what its policy keeps are its own."""

    adaptive = False

    def __init__(self, method: Method):
        self._method, self.stores, self.watches = method, method.stores, method.watches

    def to_json(self) -> dict[str, Any]:
        return self._method.to_json()

    def start(self, run: RunInfo) -> Policy:
        policy = self._method.start(run)
        return (_Observing if type(policy).observe is not Policy.observe else _Policy)(policy)


class _Policy(Policy):
    def __init__(self, policy: Policy):
        self.policy = policy

    def decide(self, step: Any) -> Any:
        self.policy.decide(step)  # which may ask for what is kept
        return Full()

    def reshaped(self) -> None:
        self.policy.reshaped()

    def expects(self, index: int) -> Any:
        return self.policy.expects(index)


class _Observing(_Policy):
    def observe(self, step: Any, seen: Any) -> None:
        self.policy.observe(step, seen)
