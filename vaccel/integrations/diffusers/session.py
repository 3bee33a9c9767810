"""Attaches the engine to one diffusers pipeline object: a hook on the root of its transformers, nothing else.

Which step a call belongs to is read from where its timestep lies in the scheduler's own timesteps, by address: no
counting (guidance may be off), no context (not every pipeline sets one), no host sync.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from ...cache.buffers import Buffers
from ...engine.graphs import Captures
from ...engine.memory import plan
from ...engine.run import Run
from ...engine.trace import Trace
from ...experts.files import SavedExperts
from ...experts.weights import Experts
from ...methods import Auto, ExpertWeights, Method, Recording
from ...models import Family
from ...models.transformer import HOOK, Call, Stage, Transformer
from ...planning.flow import Flow
from .auto import Pilot, Stopwatch
from .sampler import ExpertScheduler
from .schedulers import denoised, flow_of, with_response


class _Hook(ModelHook):
    """Sends every call of a transformer's root to the session.  Stateless: all state belongs to a run."""

    def __init__(self, session: Session, stage: int):
        super().__init__()
        self.session, self.stage = session, stage

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.session.call(self.stage, args, kwargs)


def _position(timesteps: Any, t: Any) -> int | None:
    """Where ``t`` lies in ``timesteps``: by address, without a sync; None if it is no view of them."""
    if not isinstance(t, torch.Tensor) or not isinstance(timesteps, torch.Tensor) or t.dtype != timesteps.dtype:
        return None
    offset = t.data_ptr() - timesteps.data_ptr()
    size = timesteps.element_size()
    return offset // size if 0 <= offset < size * len(timesteps) else None


@contextmanager
def _beneath_offload(module: nn.Module) -> Iterator[None]:
    """``module.forward`` is what accelerate's offload wraps, while the context lasts.

    A pipeline takes that offload off and puts it on again after every run (``maybe_free_model_hooks``); a hook around
    it would be lost there, one beneath it stays.
    """
    if "_old_forward" not in module.__dict__:
        yield
        return
    wrapper, module.forward = module.forward, module._old_forward
    try:
        yield
    finally:
        module._old_forward, module.forward = module.forward, wrapper


class Session:
    """One accelerated pipeline: its transformers, the current run, the recent traces."""

    def __init__(
        self,
        pipe: Any,
        method: Method,
        transformers: list[nn.Module],
        smalls: list[nn.Module | None],
        numbers: list[int],
        family: Family,
        *,
        compile: bool,
        captures: Captures | None = None,
        notes: Sequence[str] = (),
        keep_traces: int = 16,
    ):
        self._pipe, self.method, self.family = weakref.ref(pipe), method, family
        self.buffers, self.captures, self.notes = Buffers(), captures, tuple(notes)
        self.run: Run | None = None
        self.traces: deque[Trace] = deque(maxlen=keep_traces)
        self._timesteps: Any = None
        self._begin = 0
        self._two = False
        # Where the run's timesteps lie in memory: first byte, bytes a step, bytes up to the current one and in all.
        self._address = self._next = self._span = 0
        self._size = 1
        self.stages = []
        for number, large, small in zip(numbers, transformers, smalls, strict=True):
            large_model = Transformer(large, family, compile=compile)
            small_model = Transformer(small, family, small=True, compile=compile) if small is not None else None
            self.stages.append(Stage(number, large_model, small_model))
        self._hooks = [_Hook(self, i) for i in range(len(transformers))]
        self.pilot: Pilot | None = None
        self.watch: Stopwatch | None = None
        self._responding: tuple[Any, Flow, Flow] | None = None  # scheduler and flow; the flow with its response
        self._had: list[tuple[bool, bool]] = []
        self.experts: Experts | None = None
        self._sampler: ExpertScheduler | None = None
        self._scheduler: Any = None  # the pipeline's own, while the experts' stands in its place

    def attach(self) -> None:
        """Registers the hooks.  Raises ``ValueError`` where the pipeline is accelerated already."""
        modules = [stage.large.model for stage in self.stages]
        for module in modules:
            registry = getattr(module, "_diffusers_hook", None)
            if registry is not None and registry.get_hook(HOOK) is not None:
                raise ValueError("this transformer is accelerated already: call remove() on its handle first")
        for module, hook, stage in zip(modules, self._hooks, self.stages, strict=True):
            with _beneath_offload(module):
                self._had.append(("forward" in module.__dict__, hasattr(module, "_diffusers_hook")))
                registry = HookRegistry.check_if_exists_or_initialize(module)
                registry.register_hook(hook, HOOK)
            registry.invalidate_child_registries_cache()
            stage.large.original = hook.fn_ref.original_forward
        if isinstance(self.method, Auto):
            self.watch = Stopwatch(self._pipe())
            self.pilot = Pilot(self.method, self.watch, modules[0], self.family)

    def sample_with(self, saved: SavedExperts, wanted: ExpertWeights) -> None:
        """Puts the experts' weights and their scheduler in place of the pipeline's own, until ``detach``.

        Raises ``ValueError`` for weights that do not fit.
        """
        pipe, large = self._pipe(), self.stages[0].large
        sampler = ExpertScheduler(saved.trajectory, saved.boundary, wanted.steps, pipe.scheduler)
        self.experts = Experts(large, saved, merge=wanted.merged)
        large.experts = self.experts.models
        self._sampler, self._scheduler = sampler, pipe.scheduler
        # Past the pipeline's own __setattr__, which would write the class into its configuration.
        object.__setattr__(pipe, "scheduler", sampler)

    def _experts_off(self) -> None:
        if self.experts is not None:
            self.experts.restore()
            self.stages[0].large.experts, self.experts = (), None
        pipe = self._pipe()
        if self._sampler is not None and pipe is not None and pipe.scheduler is self._sampler:
            object.__setattr__(pipe, "scheduler", self._scheduler)
        self._sampler = self._scheduler = None

    def detach(self) -> None:
        """Takes the hooks and the experts out again and leaves each module as it was.

        Raises ``ValueError``, with everything still in place, where the transformer's weights cannot be put back.
        """
        self._experts_off()
        if self.pilot is not None:
            self.pilot.take_times()
        if self.watch is not None and self._pipe() is not None:
            self.watch.remove(self._pipe())
        for stage, (had_forward, had_registry) in zip(self.stages, self._had, strict=True):
            module = stage.large.model
            registry = module._diffusers_hook
            with _beneath_offload(module):
                registry.remove_hook(HOOK, recurse=False)
                own = getattr(module.forward, "__func__", None) is type(module).forward
                if not registry.hooks and not had_forward and own:
                    del module.forward
            registry.invalidate_child_registries_cache()
            if not registry.hooks and not had_registry:
                del module._diffusers_hook
        self._had = []
        self.run = self._timesteps = None
        self.buffers.clear()
        if self.captures is not None:
            self.captures.clear()

    def call(self, number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        stage = self.stages[number]
        model = stage.large.model
        inputs = self.family.bind(model, args, kwargs)
        index = self._locate(inputs.get("timestep"))
        if index is None:  # not a step of this pipeline: the model is being used for something else
            return stage.large.original(*args, **kwargs)
        as_tuple = inputs.get("return_dict", True) is False
        inputs["return_dict"] = False
        run = self.run
        branch = run.calls if index == run.index else 0  # pipelines call the conditional branch first
        call = Call(stage, branch, inputs, stage.large.latents(inputs), self._two)
        if self.watch is not None and index != run.index:
            self.watch.mark(call.x.device)
        output = run.call(index, call)
        if self.watch is not None and run.trace.finished:
            self.watch.mark(call.x.device)
            if self.pilot is not None and isinstance(run.method, Recording):
                self.pilot.learn(self._pipe(), run.trace)
        if self.experts is not None and run.trace.finished:
            self.experts.rest()
        return (output,) if as_tuple else _output(output)

    def _locate(self, t: Any) -> int | None:
        """The step of the run that timestep ``t`` belongs to; begins a new run where one begins."""
        pipe = self._pipe()
        if pipe is None:
            return None
        timesteps = pipe.scheduler.timesteps
        if timesteps is self._timesteps and isinstance(t, torch.Tensor):  # a later step of the run: two comparisons
            offset = t.data_ptr() - self._address
            if self._next <= offset < self._span:
                self._next = offset
                return offset // self._size - self._begin
        position = _position(timesteps, t)
        own = position is not None and t.ndim < 2  # the model takes the scheduler's timestep as it stands
        if position is None:
            t = getattr(pipe, "_current_timestep", None)
            if t is None:
                return None
            position = _position(timesteps, t)
            own = position is not None and self.family.converts_timesteps
            if position is None:  # a scheduler whose timesteps are iterated as copies: by value, at the cost of a sync
                found = (torch.as_tensor(timesteps) == torch.as_tensor(t)).nonzero()
                if not len(found):
                    return None
                position = int(found[0])
        if timesteps is not self._timesteps or position - self._begin < self.run.index:
            self._start(timesteps, position, own)
        return position - self._begin

    def _start(self, timesteps: Any, begin: int, own: bool) -> None:
        self._timesteps = self.run = None  # nothing stays of the last run if the next cannot start
        pipe = self._pipe()
        self._two = self.family.batched_guidance and float(pipe.guidance_scale) > 1
        run = self._new_run(timesteps, begin, own)
        self.run, self._timesteps, self._begin = run, timesteps, begin
        if isinstance(timesteps, torch.Tensor):
            self._address, self._size = timesteps.data_ptr(), timesteps.element_size()
            self._next, self._span = begin * self._size, len(timesteps) * self._size
        else:
            self._address, self._size, self._next, self._span = 0, 1, 0, 0

    def _new_run(self, timesteps: Any, begin: int, own: bool) -> Run:
        pipe = self._pipe()
        notes = [*self.notes, *self._check_experts(pipe)]
        method, flow = self.method, None
        if "large.past" in method.stores:
            flow = self._flow(pipe.scheduler, begin)
        if self.pilot is not None:
            guidance = self.family.guidance(pipe, 0)
            method, chosen = self.pilot.choose(pipe, len(timesteps) - begin, flow, guidance)
            notes += chosen
        run = Run(
            method,
            len(timesteps) - begin,
            self.buffers,
            guidance=lambda stage: self.family.guidance(pipe, stage),
            denoise=lambda v, x, index: denoised(pipe.scheduler, v, x, begin + index),
            timesteps=timesteps[begin:] if own else None,
            execute=self._executor(),
            depth=self.stages[0].large.depth,
            flow=flow,
        )
        run.trace.notes.extend(notes)
        if self.pilot is not None:
            self.pilot.began(run.trace)
        self.traces.append(run.trace)
        return run

    def _flow(self, scheduler: Any, begin: int) -> Flow | None:
        """The run as a flow; a solver is asked for its response once for all runs at the same levels."""
        flow = flow_of(scheduler, begin)
        if flow is None:
            return None
        kept = self._responding
        if kept is None or kept[0] is not scheduler or kept[1] != flow:
            self._responding = kept = scheduler, flow, with_response(flow, scheduler, begin)
        return kept[2]

    def _check_experts(self, pipe: Any) -> list[str]:
        """What a trace should say of the experts' run.  Raises ``ValueError`` where there can be none."""
        if self.experts is None:
            return []
        if pipe.scheduler is not self._sampler:
            raise ValueError("the pipeline's scheduler was replaced, and the experts need theirs: remove() first")
        self.experts.check()
        asked, steps = self._sampler.asked, self._sampler.num_inference_steps
        return [f"the pipeline was asked for {asked} steps and the experts make {steps}"] if asked != steps else []

    def memory_plan(self, height: int, width: int, num_frames: int, batch: int, guidance: bool) -> dict[str, int]:
        """Bytes of the buffers that a run of this size holds; see ``vaccel.memory.plan``."""
        pipe, model = self._pipe(), self.stages[0].large.model
        time = getattr(pipe, "vae_scale_factor_temporal", 1)  # an image pipeline has no time
        space = getattr(pipe, "vae_scale_factor_spatial", None) or pipe.vae_scale_factor
        branches, batched = 1 + guidance, self.family.batched_guidance
        rows = batch * (branches if batched else 1)
        shape = self.family.latents_shape(model, rows, (num_frames - 1) // time + 1, height // space, width // space)
        latents = torch.empty(shape, dtype=next(model.parameters()).dtype, device="meta")
        return plan(self.method, self.stages, latents, branches, batched=batched)

    def _executor(self) -> Captures | None:
        """What runs step functions, told of the models and buffers as they now are."""
        if self.captures is None:
            return None
        models = [model for stage in self.stages for model in (stage.large, stage.small) if model is not None]
        refusals = [reason for model in models if (reason := model.uncapturable())]
        state = (self.buffers.moves, *(model.state() for model in models))
        self.captures.begin(state, refusals[0] if refusals else None)
        return self.captures


def _output(sample: torch.Tensor) -> Any:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=sample)
