"""Carries out what a method decides, one run at a time.  It has never heard of any particular method.

A *call* is one invocation of the transformer by the sampling loop: one branch, or both in one batch.  The action of a
step is decided at the step's first call and holds for all of them.  All state of a run lives in its ``Run``; what the
buffers hold counts only if this run wrote it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch

from .. import ops
from ..actions import Action, Expert, Forecast, Full, Guidance, Output, Rescale, Residual, Resume, Small
from ..cache.block_states import States, contents
from ..cache.buffers import Buffers
from ..cache.velocity_history import Past
from ..methods import Method, Observation, Policy, RunInfo
from ..models.transformer import Call, Model, Stage
from ..planning.flow import Flow
from ..signals.modulation import Modulations
from .trace import StepRecord, Trace


class _Step:
    """What a policy sees of the step it decides on."""

    __slots__ = ("_call", "_modulations", "index", "metrics", "num_steps")

    def __init__(self, index: int, num_steps: int, call: Call, modulations: Modulations):
        self.index, self.num_steps, self._call, self._modulations = index, num_steps, call, modulations
        self.metrics: dict[str, Any] = {}

    def modulation_change(self, model: str, *, projected: bool = False) -> list[float] | None:
        stage = self._call.stage
        chosen, key = (stage.large if model == "large" else stage.small), (stage.index, model, projected)
        return self._modulations.change(key, chosen, self._call.inputs, self.index, projected)

    def record(self, **metrics: Any) -> None:
        self.metrics.update(metrics)


class Run:
    """One sampling run: ``call`` it once per transformer call; ``trace`` tells what happened.

    Args:
        method: whose policy decides.
        num_steps: T.  Raises ``ValueError`` here, before any forward, when the method does not fit it.
        buffers: storage; it may be shared between runs, contents are never trusted across them.
        guidance: stage index -> the guidance scale w of the current step.
        denoise: (prediction, x, step index) -> estimate of x_0, for methods that watch it.
        timesteps: [T], where every call takes its step's one as it stands here (or as the family converts it), for
            all rows.
        execute: (key, step function, arguments, tensors it reads and overwrites) -> what the function returns; the
            place for captured graphs.
        depth: how many blocks the large model has, 0 where nobody knows.
        flow: the run's noise levels; evenly spaced, and velocities predicted, where nobody says.
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
    ):
        self.method, self.num_steps, self.buffers = method, num_steps, buffers
        self.guidance, self.denoise = guidance, denoise
        self.execute = _eagerly if execute is None else execute
        self.trace = Trace(method.to_json(), num_steps)
        self.policy = method.start(
            RunInfo(num_steps, buffers, depth, flow, self.trace.notes.append, self.trace.deliver)
        )
        self.stores, self.watches = method.stores, method.watches - {"small"}
        self.signals = bool(self.watches & {"prediction", "denoised", "branches"})
        kept = method.keeps_states(depth) if "large.states" in self.stores else ()
        self.states = States(buffers, kept, method.state_branches)
        self.past = Past(buffers, flow or Flow.even(num_steps), method.remembers, method.banded)
        self.modulations = Modulations(buffers, timesteps)
        observes = type(self.policy).observe is not Policy.observe
        # What only the next step shows (the latents, a guidance scale that changes) has to wait for it.
        self._observes_late = observes and bool(self.watches)
        self._observes_early = observes and not self.watches
        self._finishes = type(self.policy).finish is not Policy.finish
        self.action: Action = Full()
        self.reused: str | None = None  # the stored residual that the current step's action reuses
        self.index = -1
        self.calls = 0  # of the current step so far
        self.expected = 0  # calls a step, known once the first is over
        self._valid: set[tuple] = set()  # which buffers hold something of this run
        self._magnitude: torch.Tensor | None = None
        self._small: torch.Tensor | None = None
        self._expert_output: torch.Tensor | None = None
        self._batched = False
        self._entered: tuple[Stage, torch.Tensor | None] | None = None
        self._computed: Stage | None = None
        self._step: _Step | None = None
        self._carry_out = {
            Full: self._full, Small: self._small_step, Rescale: self._rescale, Residual: self._residual,
            Output: self._output, Guidance: self._guidance, Resume: self._resume, Expert: self._expert,
            Forecast: self._forecast,
        }  # fmt: skip

    def call(self, index: int, call: Call) -> torch.Tensor:
        """The model output of one call of step ``index``, [rows, ...], computed or substituted."""
        if index != self.index:
            self._begin(index, call)
        self.calls += 1
        output = self._carry_out[type(self.action)](call)
        if self._observes_early and self.calls == 1 and index < self.num_steps - 1:
            self.policy.observe(self._step, Observation(self.action, small=self._small))
        record = self.record
        record.seconds = time.perf_counter() - self._began
        if index == self.num_steps - 1 and self.calls >= self.expected:
            self._finish()
        return output

    # -- steps -------------------------------------------------------------------------------------------------------

    def _begin(self, index: int, call: Call) -> None:
        if self._observes_late and self._step is not None:
            self._observe(call)
        self._began = time.perf_counter()
        self.expected = max(self.expected, self.calls)
        self.index, self.calls = index, 0
        self._magnitude = self._small = self._expert_output = None
        self._step = step = _Step(index, self.num_steps, call, self.modulations)
        action, reason = self.policy.decide(step), ""
        if missing := self._missing(action, call):
            action = Small() if missing.startswith("small.") else Full()
            reason = f"computed in full: no {missing} cached for this model yet"
        self.action, self.reused = action, _residual_of(action)
        self.states.changes.clear()
        self.record = StepRecord(index, action, step.metrics, reason)
        self.trace.steps.append(self.record)

    def _missing(self, action: Action, call: Call) -> str | None:
        """What an action reuses that nothing has left behind for this model; None if all is there."""
        stage, guided = call.stage.index, call.batched or self.expected > 1
        if isinstance(action, Forecast):
            known = self.past.known(call.stage, call.branch)
            return None if known >= len(action.weights.values) else f"{len(action.weights.values)} velocities"
        if isinstance(action, Resume) and not self.states.ready(call, action.block):
            return f"state after block {action.block}"
        delta = isinstance(action, Guidance) or (isinstance(action, Resume) and guided and action.branches == "cond")
        if delta and ("large.delta", stage) not in self._valid:
            return "large.delta"
        reused = "large.last" if isinstance(action, Output) else _residual_of(action)
        return reused if reused is not None and (reused, stage, call.branch) not in self._valid else None

    def _observe(self, following: Call) -> None:
        """Tells the policy about the step that is over; its signals are whole only when the next one begins."""
        seen = Observation(self.action, small=self._small, states=dict(self.states.changes))
        if isinstance(self.action, Full):
            if "latents" in self.watches:
                seen.latents = following.x[following.half :]
            self._show_velocity(seen)
            if self.signals:
                seen.branches = self._both()
            if self.watches & {"prediction", "denoised"}:
                stage, entered = self._entered
                seen.prediction = self._guided(stage, *seen.branches)
                if "denoised" in self.watches:
                    seen.denoised = self.denoise(seen.prediction, entered, self.index)
        self.policy.observe(self._step, seen)

    def _show_velocity(self, seen: Observation) -> None:
        """What a computed step's velocity shows, as far as it is watched."""
        if not self.watches & {"velocity", "surprise"}:
            return
        stage, given = self._computed, (self._batched, self.calls > 1)
        guidance = self.guidance(stage.index) if any(given) else 1.0
        if "velocity" in self.watches:
            seen.velocity = self.past.velocity(stage, guidance, *given)
        weights = self.policy.expects(self.index) if "surprise" in self.watches else None
        if weights is not None and all(self.past.known(stage, b) > len(weights.values) for b in range(self.calls)):
            seen.elements = self.past.elements(stage)
            seen.surprise = self.past.surprise(stage, weights, guidance, *given)

    def _both(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The last step's conditional output and, with guidance, the other."""
        kept = [self.buffers.of(self._signal_key(self._entered[0], branch)) for branch in range(self.calls)]
        if len(kept) == 1 and self._batched:
            uncond, cond = kept[0].chunk(2)
            return cond, uncond
        return (kept[0], kept[1]) if len(kept) > 1 else (kept[0], None)

    def _guided(self, stage: Stage, cond: torch.Tensor, uncond: torch.Tensor | None) -> torch.Tensor:
        if uncond is None:
            return cond
        out = self.buffers.like("signal.guided", cond)
        return stage.large.guided(cond, uncond, self.guidance(stage.index), out)

    def _finish(self) -> None:
        self.trace.finished = True
        if self._finishes:
            seen = Observation(self.action)
            if isinstance(self.action, Full):
                self._show_velocity(seen)
            self.policy.finish(self._step, seen)
        if self.method.adaptive and all(isinstance(s.action, Full) for s in self.trace.steps):
            note = (
                f"vaccel: {type(self.method).__name__} computed all {self.num_steps} steps in full and saved nothing; "
                "its threshold is too small to matter here (the trace has the values it was compared with)"
            )
            self.trace.notes.append(note)
            warnings.warn(note, stacklevel=2)

    # -- actions -----------------------------------------------------------------------------------------------------

    def _buffer_key(self, kind: str, call: Call) -> tuple:
        return kind, call.stage.index, call.branch

    def _full(self, call: Call) -> torch.Tensor:
        large = call.stage.large
        blocks, states = self._blocks(large, "large.blocks", call), self.states.kept(self.index, call)
        output, last = self._stored("large.output", call), self._stored("large.last", call)

        def step(inputs: Any) -> torch.Tensor:
            v = large.keeping(inputs, states) if states else _forward(large, inputs, blocks)
            if output is not None:
                ops.residual_store(v, large.latents(inputs), self.buffers.like(output, v))
            if last is not None:
                self.buffers.keep(last, v)
            return v

        v = self.execute(("large", call.stage.index, call.branch), step, call.inputs, contents(states))
        self.record.large += 2 if call.batched else 1
        if "large.delta" in self.stores:
            self._keep_delta(call, v)
        if self.signals:
            if last is None:
                self.buffers.keep(self._signal_key(call.stage, call.branch), v)
            if call.branch == 0:
                self._batched, x = call.batched, call.x[call.half :]
                watched = "denoised" in self.watches
                self._entered = call.stage, self.buffers.keep("signal.latents", x) if watched else None
        if "large.past" in self.stores:
            self.past.remember(self.index, call, v)
            self._batched, self._computed = call.batched, call.stage
            correction = getattr(self.action, "correction", None)
            if correction is not None and self.past.known(call.stage, call.branch) >= len(correction.values):
                return self.past.forecast(self.index, call, correction)
        return v

    def _signal_key(self, stage: Stage, branch: int) -> tuple:
        """Where a full step's output is looked at once it is over: where it is kept anyway, if it is."""
        return ("large.last", stage.index, branch) if "large.last" in self.stores else ("signal", branch)

    def _stored(self, kind: str, call: Call) -> tuple | None:
        """The buffer that a computed call fills with ``kind``; None if the method has no use for it."""
        if kind not in self.stores:
            return None
        key = self._buffer_key(kind, call)
        self._valid.add(key)
        return key

    def _blocks(self, model: Model, kind: str, call: Call) -> torch.Tensor | None:
        """Where a computed call leaves the residual of its blocks behind, if anywhere."""
        key = self._stored(kind, call)
        if key is None:
            return None
        return self.buffers.empty(key, model.hidden_shape(call.inputs), call.x.dtype, call.x.device)

    def _small_step(self, call: Call) -> torch.Tensor:
        small = call.stage.small
        blocks = self._blocks(small, "small.blocks", call)
        v = self.execute(
            ("small", call.stage.index, call.branch), lambda inputs: _forward(small, inputs, blocks), call.inputs
        )
        self.record.small += 2 if call.batched else 1
        return v

    def _residual(self, call: Call) -> torch.Tensor:
        kind = self.reused
        key = self._buffer_key(kind, call)
        if key not in self._valid:
            return self._fall_back(call, kind)
        buffer = self.buffers.of(key)
        if self.action.reuse == "output":
            return call.x + buffer
        model = call.stage.large if self.action.model == "large" else call.stage.small
        return self.execute(("reuse", *key), lambda inputs: model.reusing(inputs, buffer), call.inputs)

    def _rescale(self, call: Call) -> torch.Tensor:
        action, key = self.action, self._buffer_key("large.output", call)
        if key not in self._valid:
            return self._fall_back(call, "large.output")
        residual = self.buffers.of(key)
        both = not action.cfg_reuse and action.magnitude == "small"
        if call.branch == 0 or both:
            self._run_small(call, both)
        if action.magnitude == "cached":
            return call.x + residual
        if action.magnitude == "projection":
            last, direction = self.buffers.of(self._buffer_key("large.last", call)), call.x + residual
            return ops.direction_magnitude(call.x, residual, ops.cosine(last, direction) * ops.norm(last))
        return ops.direction_magnitude(call.x, residual, self._magnitude)

    def _run_small(self, call: Call, both: bool) -> None:
        """The small model's magnitudes, one a row, and its conditional output as a signal."""
        small = call.stage.small
        split = call.batched and not both

        def step(inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
            output = small.full(inputs)
            return output, ops.norm(output)

        inputs = small.rows(call.inputs, slice(call.half, None)) if split else call.inputs
        output, magnitude = self.execute(("rescale", call.stage.index, call.branch), step, inputs)
        self.record.small += 2 if call.batched and both else 1
        if call.branch == 0:
            self._small = output[call.half :] if call.batched and both else output
        self._magnitude = magnitude.repeat(2) if split else magnitude

    def _output(self, call: Call) -> torch.Tensor:
        key = self._buffer_key("large.last", call)
        return self.buffers.of(key).clone() if key in self._valid else self._fall_back(call, "large.last")

    def _forecast(self, call: Call) -> torch.Tensor:
        weights = self.action.weights
        if self.past.known(call.stage, call.branch) < len(weights.values):
            return self._fall_back(call, f"{len(weights.values)} velocities")
        return self.past.forecast(self.index, call, weights)

    def _guidance(self, call: Call) -> torch.Tensor:
        large = call.stage.large
        return self._with_delta(
            call, "cond", lambda inputs, states: large.keeping(inputs, states) if states else large.full(inputs)
        )

    def _resume(self, call: Call) -> torch.Tensor:
        large, block = call.stage.large, self.action.block
        if self.action.branches == "cond":
            return self._with_delta(call, block, lambda inputs, states: large.resuming(inputs, block, states), block)
        if not self.states.ready(call, block):
            return self._fall_back(call, f"state after block {block}")
        states = self.states.kept(self.index, call, after=block)
        key = ("resume", block, call.stage.index, call.branch)
        v = self.execute(key, lambda inputs: large.resuming(inputs, block, states), call.inputs, contents(states))
        self.record.large += 2 if call.batched else 1
        return self._keep_last(call, v)

    def _expert(self, call: Call) -> torch.Tensor:
        """The conditional branch by one expert's weights.

        The other branch is given the same output, so that any guidance the loop makes of both, u + w (c - u), is it.
        """
        if call.branch == 1 and self._expert_output is not None:
            return self._expert_output.clone()
        large, number = call.stage.large, self.action.expert
        inputs = large.rows(call.inputs, slice(call.half, None)) if call.batched else call.inputs
        key = ("expert", number, call.stage.index)
        v = self.execute(key, lambda given: large.expert(given, number), inputs)
        self.record.large += 1
        if call.batched:
            return torch.cat([v, v])
        self._expert_output = v
        return v

    def _with_delta(self, call: Call, name: Hashable, forward: Callable[..., torch.Tensor], after: int = -1) -> Any:
        """The conditional branch by ``forward(inputs, states)``, the other as it plus the cached delta."""
        delta = ("large.delta", call.stage.index)
        if call.branch == 1:
            if delta not in self._valid:
                return self._fall_back(call, "large.delta")
            cond = self.buffers.of(("large.last", call.stage.index, 0))
            return self._keep_last(call, ops.block_reuse(cond, self.buffers.of(delta)))
        inputs = call.stage.large.rows(call.inputs, slice(call.half, None)) if call.batched else call.inputs
        states = self.states.kept(self.index, call, after=after, cond_only=True)
        key = ("conditional", name, call.stage.index)
        cond = self.execute(key, lambda inputs: forward(inputs, states), inputs, contents(states))
        self.record.large += 1
        v = torch.cat([ops.block_reuse(cond, self.buffers.of(delta)), cond]) if call.batched else cond
        return self._keep_last(call, v)

    def _keep_last(self, call: Call, v: torch.Tensor) -> torch.Tensor:
        self.buffers.keep(self._stored("large.last", call), v)
        return v

    def _keep_delta(self, call: Call, v: torch.Tensor) -> None:
        """u - c, once both branches of a step are there."""
        if call.batched:
            uncond, cond = v.chunk(2)
        elif call.branch == 1:
            cond, uncond = self.buffers.of(("large.last", call.stage.index, 0)), v
        else:
            return
        key = ("large.delta", call.stage.index)
        ops.cfg_delta_store(cond, uncond, out=self.buffers.like(key, cond))
        self._valid.add(key)

    def _fall_back(self, call: Call, kind: str) -> torch.Tensor:
        """A branch that appears in the middle of a run has nothing cached: compute it, and say so."""
        self.record.reason = f"branch {call.branch} computed in full: no {kind} cached for it yet"
        return self._small_step(call) if kind.startswith("small.") else self._full(call)


def _eagerly(key: Hashable, function: Callable[[Any], Any], inputs: Any, overwritten: Any = ()) -> Any:
    return function(inputs)


def _forward(model: Model, inputs: Any, blocks: torch.Tensor | None) -> torch.Tensor:
    """A forward of every row, leaving the residual of the blocks in ``blocks`` where one is given."""
    return model.full(inputs) if blocks is None else model.storing(inputs, blocks)


def _residual_of(action: Action) -> str | None:
    """Which stored residual an action reuses (a member of ``methods.base.STORES``)."""
    if isinstance(action, Residual):
        return f"{action.model}.{action.reuse}"
    return "large.output" if isinstance(action, Rescale) else None
