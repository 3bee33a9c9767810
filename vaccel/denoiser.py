"""The engine for a hand-written sampling loop."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .cache.buffers import Buffers
from .cache.parked import Parking
from .engine.opening import opened
from .engine.run import Run
from .engine.trace import Trace
from .methods import Method
from .methods.base import required
from .models import Family, find, model_of
from .models.call import Model, Stage
from .models.generic import Generic, PlainCallable
from .parallel import agreement_of
from .planning.flow import Flow
from .planning.schema import step_count


class Denoiser:
    """Guided model outputs for a loop that steps its own solver.

        denoiser = vaccel.Denoiser(large, small, method=vaccel.DirectionMagnitude(0.005), guidance=5.0)
        with denoiser.run(num_steps=50) as run:
            for i, t in enumerate(timesteps):
                v = run.step(i, t, x, cond, uncond)
                x = solver.step(v, t, x)

    Args:
        large, small: callables ``(x, t, condition) -> output``, or diffusers transformers of a known family (the
            condition is then their ``encoder_hidden_states``, or a dict of arguments).
        method: what decides.
        guidance: w in u + w (c - u); a run may change ``denoiser.guidance`` between steps.
        family: the transformers' description, where the class name does not say.
        denoise: (prediction, x, step index) -> x_0 estimate, for methods that watch it.
        channel_axis: of the latents that callables are given, for methods whose weights go by channel; by default 1, of
            latents [B, a, b] the shorter of both.
        process_group: the ranks of ``torch.distributed`` that take part in each call of the models, and so must decide
            alike; by default as transformers show it.  Callables show nothing.
        cache_device, cache_dtype: where and in what the hidden states of transformers are kept between calls, as
            ``vaccel.accelerate`` takes them.

    Raises ``ValueError`` when ``small`` is missing, a method brings weights of its own or needs the inside of a
    plain callable, or hidden states cannot be kept so.
    """

    def __init__(
        self,
        large: Callable[..., torch.Tensor] | nn.Module,
        small: Callable[..., torch.Tensor] | nn.Module | None = None,
        *,
        method: Method,
        guidance: float = 1.0,
        family: str | Family | None = None,
        denoise: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor] | None = None,
        channel_axis: int | None = None,
        process_group: Any = None,
        cache_device: str | None = None,
        cache_dtype: torch.dtype | None = None,
    ):
        self._parking = Parking(cache_device, cache_dtype)
        if required(method).needs_small and small is None:
            raise ValueError(f"{type(method).__name__} needs the small model of the family: pass small")
        if method.experts is not None:
            raise ValueError(f"{type(method).__name__} needs a pipeline to put its weights into: use vaccel.accelerate")
        if any(kind.name == "denoised" for kind in method.watches) and denoise is None:
            raise ValueError(f"{type(method).__name__} watches the x_0 estimate: pass denoise=...")
        self.method, self.guidance, self._denoise = method, guidance, denoise
        self.process_group = process_group
        self._axis, pair = channel_axis, ((large, False), (small, True))
        models = [_model(m, family, is_small, channel_axis) for m, is_small in pair if m is not None]
        inside = [store for store in method.stores if store.inside]
        if inside and not all(m.described for m in models):
            raise ValueError(
                f"{type(method).__name__} reuses what is inside the transformer, which no plain callable shows: "
                'pass diffusers transformers, or reuse="residual" where the method has it'
            )
        if len(models) == 2 and models[0].described != models[1].described:
            raise ValueError("large and small must both be callables or both be transformers")
        self._models, self._family = (large, small), family
        #: Called with the trace of every run that has come to its end (``vaccel.calibrate.record``).
        self.finished: Callable[[Trace], None] | None = None
        self._idle: list[tuple[Stage, Buffers]] = [(Stage(0, *models), Buffers(self._parking))]

    def _taken(self) -> tuple[Stage, Buffers]:
        """Models and storage that no other run has: runs may overlap, in threads or one within another."""
        try:
            return self._idle.pop()
        except IndexError:
            named = zip(self._models, (False, True), strict=True)
            models = [_model(m, self._family, is_small, self._axis) for m, is_small in named if m is not None]
            return Stage(0, *models), Buffers(self._parking)

    def channels_along(self, axis: int) -> None:
        """From now on the latents' channels lie along ``axis``.

        Raises ``ValueError`` for a transformer, whose family says where they do.
        """
        for stage, _ in self._idle:
            if not isinstance(stage.large, PlainCallable):
                raise ValueError("channel_axis is for plain callables: where a transformer's channels lie is known")
            stage.large.axis = axis
        self._axis = axis

    def run(self, num_steps: int, flow: Flow | None = None) -> DenoiserRun:
        """A fresh run, to be used as a context manager.

        Args:
            flow: the loop's noise levels, for methods that forecast; evenly spaced, with a model that predicts
                velocities, if not given.

        Raises ``ValueError`` when the method does not fit T, or ``flow`` has another T.
        """
        step_count(num_steps)
        if flow is not None and flow.num_steps != num_steps:
            raise ValueError(f"flow has the levels of {flow.num_steps} steps, the run has {num_steps}")
        return DenoiserRun(self, num_steps, flow)


class DenoiserRun:
    """One run of a ``Denoiser``."""

    def __init__(self, denoiser: Denoiser, num_steps: int, flow: Flow | None = None):
        self._denoiser = denoiser
        self._stage, self._buffers = taken = denoiser._taken()
        for model in (self._stage.large, self._stage.small):
            if isinstance(model, Generic):
                model.refresh()
        # Given back when the context ends, or when the run is garbage-collected.
        self._given_back = weakref.finalize(self, denoiser._idle.append, taken)
        models = [getattr(model, "model", None) for model in (self._stage.large, self._stage.small)]
        self._agreement = agreement = agreement_of(models, denoiser.process_group)

        def made() -> Run:
            return Run(
                denoiser.method,
                num_steps,
                self._buffers,
                guidance=lambda stage: denoiser.guidance,
                denoise=denoiser._denoise,
                depth=getattr(self._stage.large, "depth", 0),
                flow=flow,
                agreement=agreement,
            )

        self._run = opened(agreement, made)

    @property
    def trace(self) -> Trace:
        return self._run.trace

    def step(self, i: int, t: Any, x: torch.Tensor, cond: Any, uncond: Any = None) -> torch.Tensor:
        """The guided output at step ``i`` (0-based, in order); ``uncond=None`` means no guidance.

        Args:
            t: the timestep as the models take it: a number, or a tensor [] or [B].
            x: latents [B, ...].
            cond, uncond: conditions as the models take them.

        Raises ``ValueError`` for a step out of order, and where gradients are asked for: none are computed.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("vaccel: a run computes no gradients: call the models themselves, or pass x.detach()")
        with torch.no_grad():
            return self._step(i, t, x, cond, uncond)

    def _step(self, i: int, t: Any, x: torch.Tensor, cond: Any, uncond: Any) -> torch.Tensor:
        return self._answered(i, self._asked(i, t, x, cond, uncond))

    def _asked(self, i: int, t: Any, x: torch.Tensor, cond: Any, uncond: Any) -> list[Any]:
        """The models' inputs at step ``i`` for every branch."""
        run = self._run
        if not self._given_back.alive:
            raise ValueError("this run is over: open another with denoiser.run(num_steps)")
        if i != run.index + 1 or not 0 <= i < run.num_steps:
            raise ValueError(f"step {i} of {run.num_steps} after step {run.index}: steps come once each, in order")
        run.branches = 1 if uncond is None else 2
        conditions = (cond,) if uncond is None else (cond, uncond)
        return [_inputs(self._stage.large, x, t, condition) for condition in conditions]

    def _called(self, i: int, inputs: Any) -> torch.Tensor:
        large = self._stage.large
        return self._run.call(i, self._stage, inputs, large.latents(inputs))

    def _answered(self, i: int, asked: list[Any]) -> torch.Tensor:
        """The guided output."""
        outputs = [self._called(i, inputs) for inputs in asked]
        self._run.hold_guidance()  # until the next step, whatever the caller sets for that
        if len(outputs) == 1:
            return outputs[0]
        cond, uncond = outputs
        return self._stage.large.guided(cond, uncond, self._denoiser.guidance, torch.empty_like(cond))

    def __enter__(self) -> DenoiserRun:
        return self

    def __exit__(self, kind: Any, *exception: object) -> None:
        if kind is None:
            self._run.close()
            if self._denoiser.finished is not None and self._run.trace.finished:
                self._denoiser.finished(self._run.trace)
        else:  # an aborted run leaves nothing
            self._buffers.clear()
            if self._agreement is not None:
                self._agreement.leave(exception[0])
        self._given_back()


def _model(model: Any, family: str | Family | None, is_small: bool, channel_axis: int | None = None) -> Model:
    if isinstance(model, nn.Module) and (family is not None or hasattr(model, "config")):
        return model_of(model, find(model, family), small=is_small)
    if not callable(model):
        raise ValueError(f"a model must be a callable (x, t, condition) -> output or a transformer, got {model!r}")
    return PlainCallable(model, channel_axis)


def _inputs(model: Model, x: torch.Tensor, t: Any, condition: Any) -> Any:
    if not model.described:
        return x, t, condition
    timestep = torch.as_tensor(t, device=x.device).expand(len(x))
    named = condition if isinstance(condition, dict) else {"encoder_hidden_states": condition}
    return {"hidden_states": x, "timestep": timestep, "return_dict": False, **named}
