"""One call of an accelerated pipeline: which runs it holds, and which step each call of a transformer belongs to."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...engine.graphs import Captures
from ...engine.run import Run
from ...engine.trace import Trace
from ...methods import Method, Recording
from . import guidance, ownership
from .beginning import executor, new_run
from .falling_back import in_full_from_here, short_of_memory
from .locating import Locator, Place
from .refusals import check_small, refuse_gradients
from .reporting import observed, report
from .ruling import ruling_of
from .together import agreement_for
from .workspace import Workspace

#: The arguments by which diffusers' pipelines take a function that they call after each step.
CALLBACKS = ("callback_on_step_end", "callback")

_now = time.perf_counter


class Unfollowed(Exception):  # noqa: N818  it is no error where strict=False
    """A loop that cannot be followed."""


class Scope:
    """A context manager that is open while the call lasts.

    A call may hold several loops (chunks of a long video, stages of a cascade): each is a run of its own, which begins
    where the scheduler's timesteps are others, or where the steps begin anew.
    """

    #: Whether the call goes on without caches where there is no memory for them.
    falls_back = True

    def __init__(
        self, session: Any, pipe: Any, args: tuple, kwargs: dict[str, Any], num_steps: int | None, scale: float = 1.0
    ):
        self.session, self.pipe, self.num_steps, self._scale = session, pipe, num_steps, scale
        self._args = args, kwargs
        self.traces = session.traces
        self.run: Run | None = None
        self.device: torch.device | None = None  # of the latents, from the first call on
        self.began = 0.0  # when the loop did
        self.marks: list[Any] = []  # when each step began, for whoever wants times
        self._timesteps: Any = None
        self._begin, self._rows = 0, -1
        self._two = self._calling = self._plainly = self._by_current = False
        self._scheduler: Any = None
        self._earlier: list[Any] = []  # the timesteps of this call's earlier loops
        self._locator = Locator(pipe)
        self._rest: dict[tuple[int, int], Any] = {}  # (stage, call of a step) -> what answers have beside predictions
        #: What decides in this call; one with another method may be in use around it.
        self.ruling = ruling_of(session) or session.ruling
        self._pilot = self.ruling.pilot
        self.observed = observed(session)
        self._timed = self._pilot is not None or self.observed
        self.learning: Any = None  # the file of what is learnt of such a run
        self._guider = guidance.guider_of(pipe) if num_steps is None else None
        self._attends = self._timed or self._guider is not None
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
        self.workspace = self.take()
        try:
            self.stages = self.session.stages(self.pipe, self.workspace, self.ruling.smalls)
            self.agreement = agreement_for(self)
        except BaseException:
            self.give_back(False)
            raise
        self._entered = _now()
        self._token = ownership.CURRENT.set(self)
        return self

    def take(self) -> Workspace:
        """What the call works with."""
        return self.session.pool.take()

    def give_back(self, whole: bool) -> None:
        self.session.pool.give_back(self.workspace, whole=whole)

    def captures(self) -> tuple[Captures | None, str]:
        """What captures its steps, or nothing and why."""
        return self.session.captures(self.workspace, self.device)

    def decided_by(self, method: Method) -> Method:
        """What decides in a run, where ``method`` was chosen."""
        return method

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
        if kind is not None and self.agreement is not None:
            self.agreement.leave(exception[0])
        try:
            if kind is None and self.run is not None:
                self.run.close()
            if session.experts is not None:
                session.experts.offload()
        finally:
            self.give_back(kind is None)
        if self._pilot is not None and kind is None and self.run is not None:
            self._pilot.took(self.run.trace, self.marks, _now() - self._entered)
        report(self, *exception[:1])

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
            if self.run is not None:
                self.run.hold_guidance()
            with ownership.plainly():
                result = callback(*args, **kwargs)
            for stage in self.stages.values():
                stage.large.refresh()
                if stage.small is not None:
                    stage.small.refresh()
            if self.workspace.captures is not None:
                executor(self)
            return result

        return called

    # -- calls -------------------------------------------------------------------------------------------------------

    def call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A denoiser was called while this scope is open."""
        stage = self.stages.get(id(module))
        # of some other pipeline that is called within this one's call; or the handle was removed in the middle of it
        if stage is None or self.session.removed or self._plainly:
            return ownership.plain_call(module)(*args, **kwargs)
        if self._calling:
            raise ValueError(
                f"this {type(module).__name__} was called again from within its own step, by a hook on it or on one of "
                "its parts: take that hook off, or remove() the acceleration"
            )
        large = stage.large
        inputs = large.family.bind(module, args, kwargs) if args else kwargs
        self._calling, short = True, ""
        try:
            x, run, scheduler, index = large.latents(inputs), self.run, self._scheduler, -1
            t = inputs.get(stage.time)
            told = self.pipe._current_timestep if self._by_current else t
            if scheduler is not None and scheduler.timesteps is self._timesteps and isinstance(told, torch.Tensor):
                offset = told.data_ptr() - self._address  # a later step of the run: two comparisons
                if self._next <= offset < self._span:
                    step = offset // self._size - self._begin
                    if 0 <= step - run.index <= 1:
                        self._next, index = offset, step
            if index < 0:
                self.device = x.device
                index, run = self._located(stage, t), self.run
            if torch.is_grad_enabled():
                refuse_gradients(module, inputs)
            if len(x) != self._rows:
                self._look(stage, x)
            if index != run.index and (self._attends or run.index < 0):
                self._begins(run, stage, x)
            output = run.call(index, stage, inputs, x, self._two, inputs.get(stage.condition))
            layout = large.layout
            quick = layout.single and large.looked is None
            answer = (output,) if quick else self._answer(run, stage, layout, output)
        except Unfollowed as error:
            return self._give_up(module, inputs, error)
        except RuntimeError as error:
            if not (short := short_of_memory(self, error)):
                raise
        finally:
            self._calling = False
        if short:  # past the error, whose frames hold what there is no memory for
            return in_full_from_here(self, module, inputs, short)
        if run.trace.finished:
            self._finished(run, x.device)
        return answer

    def _begins(self, run: Run, stage: Any, x: torch.Tensor) -> None:
        """A step begins."""
        if run.index < 0 and stage.small is not None:
            check_small(stage.small.model, x)
        if self._timed:
            self._mark(x.device)
        if self._guider is not None:
            run.kinds = guidance.predictions(self.pipe, stage.index)

    def _answer(self, run: Run, stage: Any, layout: Any, output: torch.Tensor) -> Any:
        """What the pipeline is given: the prediction in the model's own structure."""
        if stage.large.looked is not None:  # and the step then took another action than to compute
            stage.large.looked = None
            run.only_looked(stage)
        if not layout.answered:
            layout = self._spoken(stage) or layout
        if not layout.answered:  # nobody has: the output is recorded
            return (output,)
        if not layout.has_rest:
            return layout.unpack(output)
        key = (stage.index, run.calls)
        fresh = layout.take_rest()
        if fresh is not None and (key not in self._rest or _rows(fresh) == _rows(self._rest[key])):
            self._rest[key] = fresh
        return layout.unpack(output, self._rest.get(key, ()))

    def _spoken(self, stage: Any) -> Any:
        """How answers lie of a model that stands for one which has not been asked yet: its small one, or one before it
        of the same class; None where there is none."""
        kind = type(stage.large.model)
        others = [each.large for each in self.stages.values() if isinstance(each.large.model, kind)]
        spoken = [m.layout for m in (stage.small, *others) if m is not None and m.layout is not None]
        return next((layout for layout in spoken if layout.answered), None)

    def plainly(self) -> None:
        """From now on calls of the models are plain."""
        self._plainly = True

    def _give_up(self, module: nn.Module, inputs: dict[str, Any], error: Unfollowed) -> Any:
        """The loop cannot be followed: an error, or the plain model from here on."""
        if self.session.strict:
            raise ValueError(f"{error}. With strict=False such a pipeline is computed in full") from None
        self.plainly()
        note = f"vaccel: {error}; computed in full"
        trace = self.run.trace if self.run is not None else Trace(self.ruling.method.to_json(), 0)
        if self.run is None:
            self.traces.append(trace)
        trace.notes.append(note)
        if not self.session.gave_up:
            self.session.gave_up = True
            warnings.warn(note, stacklevel=4)
        return ownership.plain_call(module)(**inputs)

    def _mark(self, device: torch.device) -> None:
        if device.type != "cuda":
            self.marks.append(_now())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def _finished(self, run: Run, device: torch.device) -> None:
        """The last step of a run is over."""
        if self._timed:
            self._mark(device)
        if self._pilot is not None and isinstance(run.method, Recording):
            self._pilot.learn(self.pipe, run.trace, self.learning)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _located(self, stage: Any, t: Any) -> int:
        """The step of the run that a call with timestep ``t`` belongs to; begins a new run where a loop begins.

        Raises ``Unfollowed`` where nothing says it, or steps do not come in order.
        """
        at = self._begin + self.run.index if self.run is not None and self.run.index >= 0 else None
        place = self._locator.find(t, converts=stage.large.family.converts_timesteps, at=at)
        if place is None:
            raise Unfollowed(
                f"a call of the {type(stage.large.model).__name__} could not be located as a step of this "
                f"{type(self.pipe).__name__}'s run: tried the address and the value of its timestep and of "
                "_current_timestep, and the scheduler's step_index"
            )
        if place.timesteps is not self._timesteps and not self._same_loop(place):
            self._start(place, stage)
        elif place.position - self._begin != self.run.index:
            self._advance(place, stage)
        return place.position - self._begin

    def _advance(self, place: Place, stage: Any) -> None:
        """Another step of the same timesteps than that of the last call."""
        step = place.position - self._begin
        if step == self.run.index + 1 and step < self.run.num_steps:
            return
        # The loop begins anew, or goes back to an earlier step, or leaves some out after it had got going.
        if step < self.run.index or (step > self.run.index > 0 and step < self.run.num_steps):
            before, of = self.run.index, self.run.num_steps
            self._start(place, stage)
            if place.position:
                self.run.trace.notes.append(f"the loop went on at step {step} of {of} after step {before}: a new run")
            return
        raise Unfollowed(
            f"the steps of this {type(self.pipe).__name__} are out of order: step {step} of {self.run.num_steps} came "
            f"after step {self.run.index}"
        )

    def _same_loop(self, place: Place) -> bool:
        """Whether another tensor holds the same timesteps, where the loop goes on: a scheduler's state was put back."""
        if self.run is None or self.run.num_steps < 2 or not isinstance(place.timesteps, torch.Tensor):
            return False
        step, known = place.position - self._begin - self.run.index, self._timesteps
        same = isinstance(known, torch.Tensor) and known.shape == place.timesteps.shape and step in (0, 1)
        if not same or not bool((known == place.timesteps).all()):
            return False
        self._follow_timesteps(place)
        return True

    def _look(self, stage: Any, x: torch.Tensor) -> None:
        """Whether both branches are in one call, wherever its rows are others than at the call before."""
        self._rows = rows = len(x)
        batched = stage.large.family.batched_guidance
        if batched is None:
            batched = rows % 2 == 0 and guidance.wanted(self.pipe) and bool(torch.equal(*x.chunk(2)))
        elif batched:
            batched = rows % 2 == 0 and self._guidance(stage.index) > 1
        self._two = bool(batched)

    def _start(self, place: Place, stage: Any) -> None:
        """A loop begins.  Raises ``Unfollowed`` where an earlier one goes on instead."""
        returns = place.timesteps is not self._timesteps and any(place.timesteps is each for each in self._earlier)
        if place.position and returns:
            raise Unfollowed(f"two loops of this {type(self.pipe).__name__} take turns, a step of each")
        if self.run is not None:
            self.run.close()
            report(self)
            self._earlier = [*self._earlier[-7:], self._timesteps]
        self._timesteps = self.run = None  # nothing stays of the last run if the next cannot start
        self.marks, self._rest, self._rows, self._begin = [], {}, -1, place.position
        place = self._locator.begun(place)
        self.began = _now() if self.observed else 0.0
        self.run = self._new_run(place, stage)
        self._follow_timesteps(place)

    def _follow_timesteps(self, place: Place) -> None:
        """From now on these are the loop's timesteps."""
        self._scheduler, self._timesteps, self._by_current = place.scheduler, place.timesteps, place.current
        if isinstance(place.timesteps, torch.Tensor):
            self._address, self._size = place.timesteps.data_ptr(), place.timesteps.element_size()
            self._next, self._span = place.position * self._size, place.total * self._size
        else:
            self._address, self._size, self._next, self._span = 0, 1, 0, 0

    def _guidance(self, stage: int) -> float:
        if self.num_steps is not None:  # a loop by hand: the pipeline knows nothing of it
            return self._scale
        return guidance.scale(self.pipe, self.session.family_of(stage), stage, self.arguments)

    def _new_run(self, place: Place, stage: Any) -> Any:
        return new_run(self, place, stage)


def _rows(tensors: Any) -> list[int]:
    return [len(t) if t is not None and t.ndim else 0 for t in tensors]
