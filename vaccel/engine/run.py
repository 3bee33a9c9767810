"""Carries out what a method decides, one run at a time.  It has never heard of any particular method, action or store.

A *call* is one invocation of the model by the sampling loop: one branch, or both in one batch.  The action of a step is
decided at the step's first call and holds for all of them.  All state of a run lives in its ``Run``.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..actions import Action
from ..cache import Buffers
from ..methods import Method, Observation, Policy, RunInfo
from ..models.call import Stage
from ..ops import certified
from ..parallel import Agreement
from ..planning.channels import Channels
from ..planning.flow import Flow
from ..planning.schema import step_count
from ..signals import Signal, TimestepEmbedding
from .call import Call
from .trace import StepRecord, Trace

_now = time.perf_counter


class Step:
    """What a policy sees of the step it decides on."""

    __slots__ = ("_call", "_run", "index", "metrics", "num_steps")

    def __init__(self, run: Run):
        self.index, self.num_steps, self._run = -1, run.num_steps, run
        self._call: Call | None = None
        self.metrics: dict[str, Any] = {}

    @property
    def latents(self) -> torch.Tensor:
        """The latents that enter the step, [B, ...]; with batched guidance the conditional rows.

        Raises ``RuntimeError`` once the step's last call is over: nothing of a step is held longer than its loop does.
        """
        call = self._call
        if call.x is None:
            raise RuntimeError("step.latents: the step is over; keep a copy in `decide` where they are needed later")
        return call.x[call.half :] if call.half else call.x

    @property
    def channels(self) -> Channels:
        """Where the latents' channels lie."""
        return self._call.channels

    @property
    def ops(self) -> Any:
        """The ops for what the models answer with, bound once (``vaccel.ops.inner``)."""
        return self._call.ops

    @property
    def level(self) -> float:
        """The noise level s of the step, in [0, 1]."""
        return self._run.flow.levels[self.index]

    def modulation_change(self, model: str, *, projected: bool = False) -> list[float] | None:
        call, embedding = self._call, self._run.embedding
        key = (call.stage.index, model, projected)
        table = embedding.tables.get(key)
        if table is not None:
            return table[self.index]
        chosen = call.large if model == "large" else call.small
        return embedding.change(key, chosen, call.inputs, self.index, projected)

    def record(self, **metrics: Any) -> None:
        self.metrics.update(metrics)


class Run:
    """One sampling run: ``call`` it once per invocation of the model; ``trace`` tells what happened.

    Args:
        method: whose policy decides.
        num_steps: T.  Raises ``ValueError`` here, before any forward, when the method does not fit it.
        buffers: storage; it may have served other runs, contents are never trusted across them.
        guidance: stage index -> the guidance scale w of the current step.
        denoise: (prediction, x, step index) -> estimate of x_0, for methods that watch it.
        timesteps: [T], where every call takes its step's one as it stands here (or as the model converts it), for
            all rows.
        execute: (key, step function, arguments, tensors it reads and overwrites) -> what the function returns; the
            place for captured graphs.
        depth: how many blocks the large model has, 0 if unknown.
        flow: the run's noise levels; if not given, evenly spaced ones of a model that predicts velocities.
        agreement: with whom decisions are made, where several ranks share the model's calls.
    """

    def __init__(
        self,
        method: Method,
        num_steps: int,
        buffers: Buffers,
        *,
        guidance: Callable[[int], float] = lambda stage: 1.0,
        denoise: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor] | None = None,
        timesteps: torch.Tensor | None = None,
        execute: Callable[..., Any] | None = None,
        depth: int = 0,
        flow: Flow | None = None,
        agreement: Agreement | None = None,
    ):
        step_count(num_steps)
        self.method, self.num_steps, self.buffers, self.execute = method, num_steps, buffers, execute
        self.guidance, self._guidance, self.denoise = guidance, guidance, denoise
        self.flow = flow or Flow.even(num_steps)
        self.trace = Trace(method.to_json(), num_steps)
        buffers.begin()
        self.agreement, buffers.agree = agreement, None if agreement is None else self._agree
        info = RunInfo(num_steps, buffers, depth, flow, self.trace.notes.append, self.trace.deliver, self.trace.predict)
        self.policy = method.start(info)
        self.stores = method.stores
        self.embedding = TimestepEmbedding(buffers, timesteps)
        self._watch(method)
        if buffers.parking and not any(store.inside for store in self.stores):
            name = type(method).__name__
            self.trace.notes.append(f"{name} keeps no hidden states: cache_device and cache_dtype have nothing to park")
        self._finishes = type(self.policy).finish is not Policy.finish
        self.action: Action | None = None
        self.index, self.last = -1, num_steps - 1
        self.calls = 0  # of the current step so far
        # By stage, of this step so far and of the one before: a step may ask two models, one for each branch.
        self.within: dict[int, int] = {}
        self.before: dict[int, int] = {}
        self.expected = 0  # calls a step: as many as the last one had, unless the loop has said how many ``branches``
        self.branches = 0
        #: What the calls of a step are, in order, where the loop says so.
        self.kinds: tuple[str, ...] = ()
        self.calls_bound: dict[tuple[int, int], Call] = {}
        self._latest: dict[int, Call] = {}  # by their number within a step, whichever model they were of
        self.computed: list[int] = []  # steps whose action was to compute, newest first
        self.shared: dict[str, Any] = {}  # what an action leaves for the other branches of the current step
        #: Whether a step stops between its decision and what follows from it, until its first call comes again, and the
        #: call that did: in between, ``action`` says what the step will ask of the models.
        self.halts, self.halted = False, None
        self.step = Step(self)
        self.first_call: Call | None = None  # of the current step
        self._early = Observation(None)  # of steps that show nothing but their action, or what is known within them
        self._reshaped = False  # whether the latents' shape is another than at the step before

    def _watch(self, method: Method) -> None:
        """Binds the signals that the method watches, and those that they are made of."""
        self._signals: dict[type[Signal], Signal] = {}

        def bind(kind: type[Signal]) -> None:
            for required in kind.requires:
                bind(required)
            self._signals.setdefault(kind, kind(self))

        watched = list(method.watches)
        for kind in watched:
            bind(kind)
        self.watched = [self._signals[kind] for kind in watched]
        self._any_step = any(kind.any_step for kind in watched)
        computing = [s for s in self._signals.values() if type(s).computed is not Signal.computed]
        self.signals_computed = computing
        observes = type(self.policy).observe is not Policy.observe
        late = any(not kind.early for kind in watched)
        # What only the next step shows (the latents, a guidance scale that changes) has to wait for it.
        self._observes_late, self._observes_early = observes and late, observes and not late
        self._guided = self._observes_late and any(kind.guided for kind in self._signals)

    def signal(self, kind: type[Signal]) -> Any:
        """The run's own object of a signal."""
        return self._signals[kind]

    def call(
        self,
        index: int,
        stage: Stage,
        inputs: Any,
        x: torch.Tensor,
        batched: bool = False,
        condition: Any = None,
        branch: int | None = None,
    ) -> torch.Tensor:
        """The model's output for one invocation of step ``index``, [rows, ...], computed or substituted.

        Args:
            batched: whether its rows are [unconditional; conditional].
            condition: what tells branches apart: where a branch has had the same object at two steps, a call with
                another one in its place is of another kind, and nothing that was stored is of it.
            branch: which one it is, for a loop that knows and calls them in any order; numbered from 0 as they first
                come.  By default they are told apart by their order within the step.
        """
        call = self.halted
        if call is None:
            begins, number = index != self.index, self.calls
            if branch is not None:
                number = branch + 1  # the same one at every step
            elif begins:
                branch = number = 0
            else:
                branch = self.within.get(stage.index, 0)
            call = self.calls_bound.get((stage.index, branch))
            if (
                call is None
                or call.shape != x.shape
                or call.dtype != x.dtype
                or call.batched != batched
                or (self.kinds and call.kind != self._kind(branch))
            ):
                call = self._bind(stage, branch, number, x, batched, condition)
            elif call.condition is condition or (condition.__class__ is list and _alike(call.condition, condition)):
                call.settled = True
            elif call.settled:
                call = self._bind(stage, branch, number, x, batched, condition)
            else:
                call.condition = condition
            call.inputs, call.x = inputs, x
            if begins:
                self._begin(index, stage, call)
                if self.halts:
                    self.halted = call
                    return x
        else:
            self.halted, begins = None, True
        action = self.action
        if not begins and (missing := action.missing(call)):
            action = self._instead(action, call, missing)
        self.calls += 1
        self.within[stage.index] = call.branch + 1
        output = action.run(call)
        if begins and self._observes_early and index < self.last:
            seen = self._early
            seen.action = self.action
            for signal in self.watched:
                setattr(seen, signal.name, signal.value(None))
            self.policy.observe(self.step, seen)
        self.record.seconds = _now() - self._began
        if self.calls >= self.expected:
            if index == self.last and not self.trace.finished:
                self._finish()
            if self.expected:  # else there may be more calls; what these were given is the loop's alone again
                for each in self.calls_bound.values():
                    each.inputs = each.x = None
        return output

    def _agree(self, key: Any, values: list[Any], rule: Any) -> list[Any]:
        """What all ranks read where this one reads ``values``."""
        return self.agreement.values(f"step {self.index}, {key}", values, rule)

    def only_looked(self, stage: Stage) -> None:
        """The last call's model was run to see how its answers lie, and the step took another action."""
        self.record.large += self.calls_bound[stage.index, self.within[stage.index] - 1].forwards
        self.record.reason = self.record.reason or "one forward to see what the model answers with"

    def _kind(self, branch: int) -> str:
        return self.kinds[branch] if branch < len(self.kinds) else ""

    def _bind(
        self, stage: Stage, branch: int, number: int, x: torch.Tensor, batched: bool, condition: Any = None
    ) -> Call:
        """A kind of call that this run has not seen yet, or whose shape has changed; the ``number`` th of its step."""
        key = (stage.index, branch)
        old = self.calls_bound.get(key)
        before = self._latest.get(number) if old is None else old
        if old is not None:
            dropped = [k for k, c in self.calls_bound.items() if c.number == number or (not branch and k[0] == key[0])]
            for other in dropped:
                del self.calls_bound[other]
            self._reshaped = self._reshaped or branch == 0
        if before is not None and not self._goes_on(before, stage, branch, x, batched, condition):
            before = None
        if not self.calls_bound and (proven := certified.table(x.device)) is not None:
            self.trace.notes += [note for note in proven.notes() if note not in self.trace.notes]
        self.calls_bound[key] = self._latest[number] = call = Call(self, stage, branch, x, batched, number, before)
        call.condition, call.kind = condition, self._kind(branch)
        return call

    def _goes_on(self, before: Call, stage: Stage, branch: int, x: torch.Tensor, batched: bool, condition: Any) -> bool:
        """Whether a call is of the same branch as one ``before`` it: by another model, or no longer in one batch."""
        if before.stage is stage:  # which answers with other rows than it did
            halved = before.batched and not batched and x.shape == (before.half, *before.shape[1:])
            return halved and x.dtype == before.dtype and x.device == before.device
        alike = before.shape == x.shape and before.dtype == x.dtype and before.device == x.device
        if not alike or before.batched != batched or before.kind != self._kind(branch):
            return False
        return not before.settled or before.condition is condition or _alike(before.condition, condition)

    def _instead(self, action: Action, call: Call, missing: str) -> Action:
        """What a branch takes that lacks what the step's action reuses."""
        amended = self.policy.amended(action, call)
        if amended is not None and not amended.missing(call):
            self.action = self.record.action = amended
            self.record.reason = f"branch {call.branch} reuses what was computed of it: no {missing} of the same steps"
            return amended
        self.record.reason = f"branch {call.branch} computed in full: no {missing} cached for it yet"
        return action.substitute()

    def hold_guidance(self) -> None:
        """The caller may change its guidance scale for the next step: of this one it is what it is now."""
        if not self._guided:
            return
        held: dict[int, float] = {}
        for stage in {stage for stage, _ in self.calls_bound}:
            with contextlib.suppress(ValueError):  # of a pipeline that does not say, which nobody may ask either
                held[stage] = self._guidance(stage)
        self.guidance = lambda stage: held[stage] if stage in held else self._guidance(stage)

    def _begin(self, index: int, stage: Stage, call: Call) -> None:
        if self._observes_late and self.index >= 0:
            if self.action.is_full or self._any_step:
                seen = self._seen(call)
            else:
                seen = self._early
                seen.action = self.action
            self.policy.observe(self.step, seen)
            self.guidance = self._guidance
        if self._reshaped:
            self._reshaped = False
            self.policy.reshaped()
        self._began = _now()
        self.expected = self.branches or self.calls
        self.before = {stage.index: self.branches} if self.branches else self.within
        self.index, self.calls, self.first_call = index, 0, call
        self.shared, self.within = {}, {}
        for slot in call.step_begins:
            slot.begin()
        step = self.step
        step.index, step._call, step.metrics = index, call, {}
        action, reason = self.policy.decide(step), ""
        if action.is_full:
            self.computed.insert(0, index)
        elif missing := action.missing(call):
            action, reason = action.substitute(), f"computed in full: no {missing} cached for this model yet"
            if action.is_full:
                self.computed.insert(0, index)
        self.action = action
        self.record = StepRecord(index, action, step.metrics, reason)
        self.trace.steps.append(self.record)

    def _seen(self, following: Call | None) -> Observation:
        """The signals of the step that is over; they are whole only when the next one begins."""
        seen = Observation(self.action)
        full = self.action.is_full
        for signal in self.watched:
            if full or signal.any_step:
                setattr(seen, signal.name, signal.value(following))
        return seen

    def close(self) -> None:
        """The loop is over.  Guidance may have ended before it: then only now is it known that all steps are made."""
        if self.index == self.last and not self.trace.finished:
            self._finish()

    def release(self) -> None:
        """Lets go of every tensor: the run is over before its end, and only its trace is left."""
        self.calls_bound, self._latest, self.shared, self.first_call = {}, {}, {}, None
        self.step._call = self.halted = None
        self.signals_computed, self.watched, self._signals = [], [], {}

    def _finish(self) -> None:
        self.trace.finished = True
        if lost := self.buffers.lost():
            self.trace.notes.append(lost)
        if self.agreement is not None and self.agreement.spread:
            self.trace.notes.append(f"the ranks' signals differed by up to {self.agreement.spread:.1g}, relatively")
        if self._finishes:
            seen = self._seen(None) if self._observes_late and self.action.is_full else Observation(self.action)
            self.policy.finish(self.step, seen)
        if self.method.adaptive and all(s.action.is_full for s in self.trace.steps):
            note = (
                f"vaccel: {type(self.method).__name__} computed all {self.num_steps} steps in full and saved nothing; "
                "its threshold is too small to matter here (the trace has the values it was compared with)"
            )
            self.trace.notes.append(note)
            warnings.warn(note, stacklevel=2)


def _alike(known: Any, condition: Any) -> bool:
    """Whether two lists hold the same objects."""
    lists = isinstance(known, (list, tuple)) and isinstance(condition, (list, tuple))
    return lists and len(known) == len(condition) and all(a is b for a, b in zip(known, condition, strict=True))
