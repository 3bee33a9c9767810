"""One call of an accelerated pipeline: which runs it holds, and which step each call of a transformer belongs to."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ...engine.run import Run
from ...engine.trace import Trace
from ...methods import Method, Recording
from ...planning.flow import Flow
from . import guidance, ownership
from .fitting import mismatches
from .locating import by_address, by_scheduler, by_value
from .schedulers import denoised, flow_of, with_response

#: The arguments by which diffusers' pipelines take a function that they call after each step.
CALLBACKS = ("callback_on_step_end", "callback")

_now = time.perf_counter


class Scope:
    """A context manager that is open while the call lasts.

    A call may hold several loops (chunks of a long video, stages of a cascade): each is a run of its own, which begins
    where the scheduler's timesteps are others, or where the steps begin anew.
    """

    def __init__(
        self, session: Any, pipe: Any, args: tuple, kwargs: dict[str, Any], num_steps: int | None, scale: float = 1.0
    ):
        self.session, self.pipe, self.num_steps, self._scale = session, pipe, num_steps, scale
        self._args = args, kwargs
        self.run: Run | None = None
        self.marks: list[Any] = []  # when each step began, for whoever wants times
        self._timesteps: Any = None
        self._begin = 0
        self._two = self._calling = False
        self._pilot = session.pilot
        self._learning: Any = None  # the file of what is learnt of such a run
        self._guider, self._conditions = guidance.guider_of(pipe) if num_steps is None else None, ()
        # Where the run's timesteps lie in memory: first byte, bytes a step, bytes up to the current one and in all.
        self._address = self._next = self._span = 0
        self._size = 1

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the pipeline's call, by name."""
        if isinstance(self._args, tuple):
            base = ownership.base_of(self.pipe)
            self._args = guidance.arguments_of(self.pipe, base, *self._args)
        return self._args

    @property
    def trace(self) -> Trace:
        """Of its last run.  Raises ``RuntimeError`` before the first."""
        if self.run is None:
            raise RuntimeError("no step yet: call the transformer first")
        return self.run.trace

    def __enter__(self) -> Scope:
        if self.num_steps is not None or self._by_hand():
            outer = ownership.CURRENT.get()
            if outer is not None and outer.session is self.session and (self.num_steps or outer.num_steps):
                raise ValueError(
                    f"a run of this {type(self.pipe).__name__} is open on this thread already: close it first. The "
                    "pipeline's own call opens its run by itself; handle.run() is for loops that call the transformer"
                )
        self._workspace = self.session.pool.take()
        try:
            self.stages = self.session.stages(self.pipe, self._workspace)
        except BaseException:
            self.session.pool.give_back(self._workspace, whole=False)
            raise
        self._entered = _now()
        self._token = ownership.CURRENT.set(self)
        return self

    def _by_hand(self) -> bool:
        outer = ownership.CURRENT.get()
        return outer is not None and outer.session is self.session and outer.num_steps is not None

    def __exit__(self, kind: Any, *exception: object) -> None:
        try:
            ownership.CURRENT.reset(self._token)
        except ValueError:  # closed in another context than it was opened in, as by a generator
            if ownership.CURRENT.get() is self:
                ownership.CURRENT.set(None)
            warnings.warn(
                "vaccel: a run was closed in another context than it was opened in (a generator that a server steps?); "
                "calls of the transformer outside the context that opened it were plain",
                stacklevel=2,
            )
        session = self.session
        try:
            if kind is None and self.run is not None:
                self.run.close()
            if session.experts is not None:
                session.experts.offload()
        finally:
            session.pool.give_back(self._workspace, whole=kind is None)
        if session.pilot is not None and kind is None and self.run is not None:
            session.pilot.took(self.run.trace, self.marks, _now() - self._entered)

    # -- what the caller does between steps --------------------------------------------------------------------------

    def given(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The call's arguments by name, with callbacks that are no part of the run."""
        callbacks = [name for name in CALLBACKS if callable(kwargs.get(name))]
        if not callbacks:
            return kwargs
        inputs = getattr(kwargs.get(CALLBACKS[0]), "tensor_inputs", None)
        kwargs = {**kwargs, **{name: self._outside(kwargs[name]) for name in callbacks}}
        if inputs is not None:  # diffusers' PipelineCallback objects name what they want to see
            kwargs[f"{CALLBACKS[0]}_tensor_inputs"] = inputs
        return kwargs

    def _outside(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """The callback, whose own calls of the transformer are plain; what it changed of the model is seen after it."""

        def called(*args: Any, **kwargs: Any) -> Any:
            with outside():
                result = callback(*args, **kwargs)
            for stage in self.stages.values():
                stage.large.refresh()
                if stage.small is not None:
                    stage.small.refresh()
            if self._workspace.captures is not None:
                self._executor()
            return result

        return called

    # -- calls -------------------------------------------------------------------------------------------------------

    def call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A transformer was called while this scope is open."""
        stage = self.stages.get(id(module))
        # of some other pipeline that is called within this one's call; or the handle was removed in the middle of it
        if stage is None or self.session.removed:
            return ownership.plain_call(module)(*args, **kwargs)
        if self._calling:
            raise ValueError(
                f"this {type(module).__name__} was called again from within its own step, by a hook on it or on one of "
                "its parts: take that hook off, or remove() the acceleration"
            )
        inputs = self.session.family.bind(module, args, kwargs) if args else kwargs
        t, index = inputs.get("timestep"), None
        if self.pipe.scheduler.timesteps is self._timesteps and isinstance(t, torch.Tensor):
            offset = t.data_ptr() - self._address  # a later step of the run: two comparisons
            if self._next <= offset < self._span:
                self._next = offset
                index = offset // self._size - self._begin
        if index is None:
            index = self._locate(t)
        if index is None:
            raise ValueError(
                f"a call of the {type(module).__name__} could not be located as a step of this "
                f"{type(self.pipe).__name__}'s run: tried the address and the value of its timestep and of "
                "_current_timestep, and the scheduler's step_index"
            )
        as_tuple = inputs.get("return_dict", True) is False
        if not as_tuple or inputs is not kwargs:
            inputs = {**inputs, "return_dict": False}
        x = stage.large.latents(inputs)
        if torch.is_grad_enabled():
            self._refuse_gradients(module, x)
        run = self.run
        if run.index < 0 and stage.small is not None:
            _check_small(stage.small.model, x)
        if index != run.index:
            if self._pilot is not None:
                self._mark(x.device)
            if self._guider is not None:
                self._follow(run)
        self._calling = True
        try:
            output = run.call(index, stage, inputs, x, self._two)
        finally:
            self._calling = False
        if run.trace.finished:
            self._finished(run, x.device)
        return (output,) if as_tuple else _output(output)

    def _follow(self, run: Run) -> None:
        """Branches that a guider makes of other conditions than at the step before start without anything cached."""
        conditions = guidance.conditions(self.pipe)
        if run.index >= 0 and conditions != self._conditions:
            run.forget_branches()
        self._conditions = conditions

    def _refuse_gradients(self, module: nn.Module, x: torch.Tensor) -> None:
        if x.requires_grad or any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                "vaccel: an accelerated run computes no gradients: call the pipeline under torch.no_grad(), or use "
                "handle.remove() before training through it"
            )

    def _mark(self, device: torch.device) -> None:
        if device.type != "cuda":
            self.marks.append(_now())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def _finished(self, run: Run, device: torch.device) -> None:
        """The last step of a run is over."""
        pilot = self.session.pilot
        if pilot is not None:
            self._mark(device)
            if isinstance(run.method, Recording):
                pilot.learn(self.pipe, run.trace, self._learning)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _locate(self, t: Any) -> int | None:
        """The step of the run that timestep ``t`` belongs to; begins a new run where one begins."""
        pipe = self.pipe
        timesteps = pipe.scheduler.timesteps
        position, own = self._position(timesteps, t)
        if position is None:
            return None
        if timesteps is not self._timesteps or position - self._begin < self.run.index:
            self._start(timesteps, position, own)
        return position - self._begin

    def _position(self, timesteps: Any, t: Any) -> tuple[int | None, bool]:
        """(where in the scheduler's timesteps a call is, whether the model takes the timestep as it stands there)."""
        pipe, family = self.pipe, self.session.family
        position = by_address(timesteps, t)
        if position is not None:
            return position, t.ndim < 2
        current = getattr(pipe, "_current_timestep", None)
        if current is not None:
            position = by_address(timesteps, current)
            if position is not None:
                return position, family.converts_timesteps
            return by_value(timesteps, current), False
        if t is not None and (position := by_value(timesteps, t)) is not None:
            return position, False
        return by_scheduler(pipe.scheduler), False

    def _start(self, timesteps: Any, begin: int, own: bool) -> None:
        self._timesteps = self.run = None  # nothing stays of the last run if the next cannot start
        self.marks = []
        two = self.session.family.batched_guidance and self._guidance(0) > 1
        run = self._new_run(timesteps, begin, own)
        self.run, self._timesteps, self._begin, self._two = run, timesteps, begin, two
        if isinstance(timesteps, torch.Tensor):
            self._address, self._size = timesteps.data_ptr(), timesteps.element_size()
            self._next, self._span = begin * self._size, len(timesteps) * self._size
        else:
            self._address, self._size, self._next, self._span = 0, 1, 0, 0

    def _guidance(self, stage: int) -> float:
        if self.num_steps is not None:  # a loop by hand: the pipeline knows nothing of it
            return self._scale
        return guidance.scale(self.pipe, self.session.family, stage, self.arguments)

    def _new_run(self, timesteps: Any, begin: int, own: bool) -> Any:
        session, pipe = self.session, self.pipe
        steps = len(timesteps) - begin
        if self.num_steps is not None and steps != self.num_steps:
            raise ValueError(f"the run was opened for {self.num_steps} steps, the scheduler has {steps}")
        method = session.method
        notes = [*mismatches(method, pipe), *self._check_experts()]
        flow = self._flow(begin, method)
        if session.pilot is not None:
            scales = [self._guidance(stage.index) for stage in self.stages.values()]
            bound = guidance.bound(self.arguments)
            modules = [stage.large.model for stage in self.stages.values()]
            method, chosen, self._learning = session.pilot.choose(pipe, modules, steps, flow, scales, bound)
            notes += chosen
        run = Run(
            method,
            steps,
            self._workspace.buffers,
            guidance=self._guidance,
            denoise=lambda v, x, index: denoised(pipe.scheduler, v, x, begin + index),
            timesteps=timesteps[begin:] if own else None,
            execute=self._executor(),
            depth=next(iter(self.stages.values())).large.depth,
            flow=flow,
        )
        run.trace.notes.extend(notes)
        session.traces.append(run.trace)
        return run

    def _flow(self, begin: int, method: Method) -> Flow | None:
        """The run as a flow; a solver is asked for its response once for all runs at the same levels.

        Raises ``ValueError`` for predictions that say nothing of velocities, where the method needs those.
        """
        scheduler = self.pipe.scheduler
        if not any(store.kind == "velocities" for store in method.stores):
            with contextlib.suppress(ValueError):
                return flow_of(scheduler, begin)
            return None
        flow = flow_of(scheduler, begin)
        if flow is None:
            return None
        kept = getattr(self.session, "responding", None)
        if kept is None or kept[0] is not scheduler or kept[1] != flow:
            self.session.responding = kept = scheduler, flow, with_response(flow, scheduler, begin)
        return kept[2]

    def _check_experts(self) -> list[str]:
        """What a trace should say of the experts' run.  Raises ``ValueError`` where there can be none."""
        session = self.session
        if session.experts is None:
            return []
        if self.pipe.scheduler is not session.sampler:
            raise ValueError("the pipeline's scheduler was replaced, and the experts need theirs: remove() first")
        session.experts.check()
        asked, steps = session.sampler.asked, session.sampler.num_inference_steps
        return [f"the pipeline was asked for {asked} steps and the experts make {steps}"] if asked != steps else []

    def _executor(self) -> Any:
        """What captures step functions, or None; it is given the present state of models and buffers."""
        captures = self._workspace.captures
        if captures is None:
            return None
        models = [m for s in self.stages.values() for m in (s.large, s.small) if m is not None]
        refusals = [reason for model in models if (reason := model.uncapturable())]
        inference = torch.is_inference_mode_enabled()
        state = (self._workspace.buffers.moves, inference, *(model.state() for model in models))
        captures.begin(state, refusals[0] if refusals else None)
        return captures


def _check_small(small: nn.Module, x: torch.Tensor) -> None:
    """Raises ``ValueError`` where the small model was left behind when the pipeline was moved."""
    dtype = getattr(small, "dtype", x.dtype)
    device = next((p.device for p in small.parameters()), x.device)
    if dtype != x.dtype or (device != x.device and device.type != "meta" and "_hf_hook" not in small.__dict__):
        raise ValueError(
            f"the small model is {dtype} on {device}, the pipeline runs in {x.dtype} on {x.device}: move it too, with "
            f"small.to({str(x.device)!r}, {x.dtype})"
        )


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Calls of transformers are plain while the context lasts."""
    token = ownership.CURRENT.set(None)
    try:
        yield
    finally:
        ownership.CURRENT.reset(token)


def _output(sample: torch.Tensor) -> Any:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=sample)
