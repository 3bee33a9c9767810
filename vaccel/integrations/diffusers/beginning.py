"""A run of a loop that begins: its method, noise levels, guidance, and where captured steps go."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ...engine.graphs import Captures
from ...engine.opening import opened
from ...engine.run import Run
from ...methods import Method
from ...planning.flow import Flow
from . import attention, guidance
from .fitting import mismatches
from .locating import Place
from .schedulers import denoised, flow_of, with_response
from .together import UNCAPTURED, chosen


def new_run(scope: Any, place: Place, stage: Any) -> Run:
    """The run of a loop that begins at ``place``, by the method of the call, or that its pilot chooses."""
    session, pipe, begin = scope.session, scope.pipe, place.position
    steps = place.total - begin
    if scope.num_steps is not None and steps != scope.num_steps:
        raise ValueError(f"the run was opened for {scope.num_steps} steps, the scheduler has {steps}")
    ruling = scope.ruling
    method, predicted = ruling.method, {}
    notes = [*ruling.notes, *mismatches(method, pipe), *check_experts(scope)]
    if session.attention is not None:
        notes += session.attention.notes
    levels = flow(scope, place, method)
    if ruling.pilot is not None:
        scales = [scope._guidance(each.index) for each in scope.stages.values()]
        # What is learnt of a cascade's first loop is nothing to its second one.
        bound = [*guidance.bound(scope.arguments), *([stage.index] if stage.index else [])]
        modules = [each.large.model for each in scope.stages.values()]

        def choose() -> Any:
            return ruling.pilot.choose(pipe, modules, steps, levels, scales, bound)

        method, note, scope.learning, predicted = chosen(scope.agreement, choose)
        notes += [note] if note else []

    def x_0(prediction: torch.Tensor, x: torch.Tensor, index: int) -> torch.Tensor:
        if place.scheduler is None:
            raise ValueError("the noise levels of this loop are unknown: no estimate of x_0 can be watched")
        return denoised(place.scheduler, prediction, x, begin + index)

    execute, without = executor(scope)

    def made() -> Run:
        return Run(
            scope.decided_by(method),
            steps,
            scope.workspace.buffers,
            guidance=scope._guidance,
            denoise=x_0,
            timesteps=place.timesteps[begin : place.total] if place.own else None,
            execute=execute,
            depth=next(iter(scope.stages.values())).large.depth,
            flow=levels,
            agreement=scope.agreement,
        )

    run = opened(scope.agreement, made)
    run.trace.notes.extend(notes)
    run.trace.predict(**predicted)
    if execute is not None:
        execute.tell(run.trace.notes)
    elif without:
        run.trace.notes.append(f"no CUDA graphs: {without}")
    scope.traces.append(run.trace)
    return run


def flow(scope: Any, place: Place, method: Method) -> Flow | None:
    """The run as a flow; a solver is asked for its response once for all runs at the same levels.

    Raises ``ValueError`` for predictions that say nothing of velocities, where the method needs those.
    """
    scheduler, begin = place.scheduler, place.position
    if scheduler is None or place.total != len(scheduler.timesteps):
        return None
    if not any(store.kind == "velocities" for store in method.stores):
        with contextlib.suppress(ValueError):
            return flow_of(scheduler, begin)
        return None
    found = flow_of(scheduler, begin)
    if found is None:
        return None
    kept = getattr(scope.session, "responding", None)
    if kept is None or kept[0] is not scheduler or kept[1] != found:
        scope.session.responding = kept = scheduler, found, with_response(found, scheduler, begin)
    return kept[2]


def check_experts(scope: Any) -> list[str]:
    """What a trace should say of the experts' run.  Raises ``ValueError`` where there can be none."""
    session = scope.session
    if session.experts is None:
        return []
    if scope.pipe.scheduler is not session.sampler:
        raise ValueError("the pipeline's scheduler was replaced, and the experts need theirs: remove() first")
    session.experts.check()
    asked, steps = session.sampler.asked, session.sampler.num_inference_steps
    return [f"the pipeline was asked for {asked} steps and the experts make {steps}"] if asked != steps else []


def executor(scope: Any) -> tuple[Captures | None, str]:
    """What captures step functions, given the present state of models and buffers; or None, and why if there is more
    to say than that nobody wants it."""
    captures, without = scope.captures()
    if captures is None:
        return None, without
    models = [m for s in scope.stages.values() for m in (s.large, s.small) if m is not None]
    refusals = [UNCAPTURED] if scope.agreement is not None else []
    refusals += [reason for model in models if (reason := model.uncapturable())]
    if scope.workspace.buffers.parking:
        refusals.append("hidden states are parked between calls (cache_device, cache_dtype)")
    state = (scope.workspace.buffers.moves, attention.active(), *(model.state() for model in models))
    captures.begin(state, refusals[0] if refusals else None)
    return captures, ""
