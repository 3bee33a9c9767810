"""``accelerate`` and the ``Handle`` it returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from .cache.parked import Parking
from .certify import first_use
from .engine import graphs
from .engine.report import RunReport
from .engine.trace import Trace
from .experts.files import read_experts
from .experts.weights import suitable
from .integrations.diffusers.attention import Attention
from .integrations.diffusers.fitting import mismatches
from .integrations.diffusers.memory_plan import planned
from .integrations.diffusers.ruling import Ruling, using
from .integrations.diffusers.scope import Scope
from .integrations.diffusers.session import Session, dtype_of, usable
from .methods import Auto, Method
from .methods.auto import VISIBLE
from .methods.base import required
from .models import Family, find
from .models.denoisers import denoisers_of, takes_timestep
from .planning.schema import step_count


class Handle:
    """An accelerated pipeline.  Also a context manager that removes itself.

    Attributes:
        method: the method it was accelerated with.
        refused: why it runs without CUDA graphs that were asked for; empty where it runs with them.
    """

    def __init__(self, session: Session, attention: Attention | None):
        self._session: Session | None = session
        self._attention = attention
        self._traces = session.traces
        self.method = session.method
        self.refused = session.refused

    @property
    def attention(self) -> str | None:
        """Diffusers' name of the attention backend in use; None where the models' own was left, or is used again since
        every model that was tried with one that quantises has refused it."""
        return self._attention.name if self._attention is not None else None

    @property
    def trace(self) -> Trace:
        """The last run's trace, of an aborted run too.  Raises ``RuntimeError`` before the first run."""
        if not self._traces:
            raise RuntimeError("no run yet: call the pipeline first")
        return self._traces[-1]

    @property
    def traces(self) -> list[Trace]:
        """The recent runs' traces, oldest first."""
        return list(self._traces)

    @property
    def family(self) -> Family:
        """The description of the transformers.  Raises ``RuntimeError`` after ``remove``."""
        if self._session is None:
            raise RuntimeError("the handle was removed: nothing is accelerated")
        return self._session.family

    @property
    def expert_bytes(self) -> dict[str, int]:
        """Bytes of a method's experts: "detail", what the detail expert has of its own on the device, and "parked", the
        transformer's original weights, in host memory or in a temporary file.  Both 0 for other methods."""
        experts = self._session.experts if self._session is not None else None
        return experts.nbytes if experts is not None else {"detail": 0, "parked": 0}

    @property
    def nbytes(self) -> int:
        """Bytes on the device that are held now: by the caches, and by captured steps with their arguments, their
        results and the memory pools that they were recorded in.  ``memory_plan`` is of the caches alone."""
        return self._session.pool.nbytes if self._session is not None else 0

    def memory_plan(self, **call: Any) -> dict[str, int]:
        """Bytes that a call of the pipeline will hold for its caches, by what they are for, and under "total" in all.

            handle.memory_plan(height=480, width=832, num_frames=81, num_inference_steps=50)["total"]

        The call is made, with every model computed once for each branch and its answers repeated after that: it costs a
        step, and the memory of one.  It leaves no trace, and random numbers as they were.  For the results of ``Auto``
        it is of the method that the next call would take.

        Args:
            call: as the pipeline itself takes it; without a prompt, of an empty one.

        A run without CUDA graphs then holds exactly this (``handle.nbytes``), where an adaptive method skips something;
        less, where so few steps are computed that a history is never full.  What graphs add is known once they are
        captured: the trace says it, and ``handle.nbytes`` has it.

        Raises ``RuntimeError`` after ``remove``, ``ValueError`` for a pipeline without a call of its own, and what the
        pipeline raises for such a call.
        """
        if self._session is None or self._session.pipe is None:
            raise RuntimeError("the handle was removed: nothing is held")
        return planned(self._session, call)

    def run(self, num_steps: int, guidance: float = 1.0) -> Scope:
        """Opens a run for a loop that calls the transformer itself; a context manager, whose ``trace`` is the run's.

            pipe.scheduler.set_timesteps(50)
            with handle.run(50) as run:
                for t in pipe.scheduler.timesteps:
                    v = pipe.transformer(hidden_states=x, timestep=t.expand(len(x)), ...)[0]

        Args:
            num_steps: T, as many as the pipeline's scheduler has timesteps.
            guidance: the loop's guidance scale w, for methods that watch guided outputs; where a model takes both
                branches in one batch, a scale above 1 says that the calls do.

        Raises ``ValueError`` where one is open on this thread already, and at the first call where the scheduler has
        another number of steps; ``RuntimeError`` after ``remove``.
        """
        if self._session is None or self._session.pipe is None:
            raise RuntimeError("the handle was removed: nothing is accelerated")
        step_count(num_steps)
        return self._session.scope(self._session.pipe, (), {}, num_steps, guidance)

    def using(
        self, method: Method | None, *, small: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module] | None = None
    ) -> AbstractContextManager[None]:
        """A context within which this thread's or task's calls of the pipeline take another method.

            with handle.using(vaccel.Auto(speedup=3)):
                draft = pipe(prompt).frames
            with handle.using(None):
                whole = pipe(prompt).frames

        Other threads and tasks are not touched, so a server may choose for every request.

        Args:
            method: what decides; None for the plain pipeline.
            small: as ``accelerate`` takes it, where the method needs one and ``accelerate`` was given none.

        Raises ``ValueError`` for a method that does not fit this pipeline, or that brings weights of its own (or where
        the pipeline's method does: those are in it for every call); ``RuntimeError`` after ``remove``.
        """
        session = self._session
        if session is None or session.pipe is None:
            raise RuntimeError("the handle was removed: nothing is accelerated")
        if session.method.experts is not None:
            raise ValueError(f"{_of_weights(session.method)}: remove() first")
        return using(session, None if method is None else _other(session, method, small))

    def on_run(self, listener: Callable[[RunReport], object]) -> Callable[[], None]:
        """Has ``listener`` called after every run of the pipeline, an aborted one too, in the run's own thread.

        What it raises is logged and harms no run.  The logger "vaccel" says a line a run at INFO, with or without
        listeners.

        Returns what takes the listener off again.  Raises ``RuntimeError`` after ``remove``.
        """
        if self._session is None:
            raise RuntimeError("the handle was removed: nothing is accelerated")
        listeners = self._session.observers
        listeners.append(listener)
        return lambda: listeners.remove(listener) if listener in listeners else None

    def remove(self) -> None:
        """Gives the pipeline back bit for bit as it was.  Calling it twice does nothing.

        Raises ``ValueError``, and leaves all as it is, where a method's weights cannot be taken out of a transformer
        that has been offloaded by layers since.
        """
        if self._session is None:
            return
        self._session.detach()
        if self._attention is not None:
            self._attention.undo()
        self._session = None

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def accelerate(
    pipe: Any,
    method: Method | None = None,
    *,
    small: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module] | None = None,
    family: str | Family | None = None,
    compile: bool = False,
    cuda_graphs: bool | None = None,
    attention: str | tuple[str, float] | None = None,
    strict: bool = True,
    cache_device: str | None = None,
    cache_dtype: torch.dtype | None = None,
    process_group: Any = None,
) -> Handle:
    """Accelerates one diffusers pipeline object in place; its class and other pipelines stay as they are.

    Args:
        pipe: a pipeline with one or several denoisers: ``transformer``, ``transformer_2``, ``unet``, ``prior``,
            ``decoder``, or whatever module takes a sample and a timestep.  What no family describes is accelerated at
            its outputs (methods that reach for its blocks say so).
        method: what decides, such as ``vaccel.DirectionMagnitude(threshold=0.005)``.  By default ``Auto`` as fast as
            a difference to the full run cannot be seen (``vaccel.methods.auto.VISIBLE``).
        small: the small transformer, for methods that need one (two for two-transformer pipelines, or one for both; or
            by the names of the pipeline's attributes, as in ``{"prior": ..., "decoder": ...}``).  It must lie on the
            pipeline's device, in its dtype.
        family: the description of the transformer, where its class name does not say.
        compile: compile every forward the method uses, each as one full graph.
        cuda_graphs: capture every forward the method uses, with the ops of its action, and replay it.  By default on a
            GPU that graphs are certified on (``vaccel doctor --certify``), for those forwards whose enqueueing takes
            most of the device's time, as the run's own first ones show; the trace's notes say why not, or what was
            captured and its cost.  ``VACCEL_KERNELS=torch`` turns that off.  True captures whatever comes twice; what
            cannot be captured (offloaded models, say) runs without: said once, and in ``handle.refused``.  False: none.
        attention: the kernel for attention: "auto" for the fastest exact one here, or "sdpa", "cudnn", "flash2",
            "flash3", "sageattention" or any name of diffusers' dispatcher; by default the models' own stays.  One that
            quantises (every SageAttention) is tried on each model at its first computed step, beside exact attention:
            where the output is off by more than ``vaccel.integrations.diffusers.attention.BOUND``, relative L2, or the
            kernel fails, that model keeps exact attention, with one warning.  The trace says the error either way.
            ``("sageattention", 0.1)`` sets another bound.
        strict: whether a loop whose steps cannot be followed raises at its first step; otherwise it is computed in
            full, with one warning and a note in the trace.
        cache_device: "cpu" keeps hidden states (what LeMiCa, TeaCache and MixCache hold within a model) in host memory
            between the calls that write and read them; on a GPU the copies there go on beside the next computation.
            Such runs capture no CUDA graphs.  What is of the latents' size stays on the device.
        cache_dtype: keeps them in fewer bits: ``torch.bfloat16``, ``torch.float16``, or ``torch.float8_e4m3fn`` or
            ``torch.float8_e5m2`` with a scale a row.  The trace's notes say the largest relative L2 error.
        process_group: the ranks of ``torch.distributed`` that take part in each call of the transformer, and so must
            decide alike.  By default as the models show: diffusers' ``enable_parallelism``, sharded parameters (tensor
            parallelism, FSDP2).  Ranks that hold whole models are left alone.

    Returns the ``Handle``: ``handle.trace`` after a run, ``handle.remove()`` to undo.

    Raises ``ValueError`` for a pipeline or transformer it does not know, a missing or mismatched small model, a
    pipeline that is accelerated already, a method calibrated with another model or scheduler, experts that are missing
    or do not fit, ``cuda_graphs=True`` without a GPU, or an attention backend that cannot run here.  A method that does
    not fit the number of steps raises at the first step of the run, before any forward.
    """
    method = Auto(psnr=VISIBLE) if method is None else required(method)
    parking = Parking(cache_device, cache_dtype)
    if cuda_graphs:
        graphs.backend()
    denoisers = denoisers_of(pipe)
    names, transformers = list(denoisers), [usable(module) for module in denoisers.values()]
    if not transformers:
        raise ValueError(
            f"{type(pipe).__name__} has no transformer and scheduler, nor any other module that takes a sample and a "
            "timestep: there is nothing to accelerate"
        )
    for module in transformers:
        if not takes_timestep(module):
            raise ValueError(f"no family describes {type(module).__name__}, and its forward takes no timestep")
    described = find(transformers[0], family)
    for other in transformers[1:]:
        find(other, family if isinstance(family, str) else None)
    method, asked = (method if described.described else method.outside()), method
    wanted, saved = method.experts, None
    if wanted is not None:
        saved = read_experts(wanted.folder)
        if len(names) > 1 or not described.described:
            raise ValueError(f"experts are for one transformer; this {type(pipe).__name__} has {' and '.join(names)}")
        suitable(transformers[0], saved)
    smalls = _smalls(method, _by_place(small, names), transformers, described)
    mismatches(method, pipe)
    if (first := next(transformers[0].parameters(), None)) is not None:
        first_use(first.device)
    session = Session(pipe, method, described, smalls, notes=_outside(method, asked), compile=compile,
                      cuda_graphs=cuda_graphs, strict=strict, parking=parking,
                      process_group=process_group)  # fmt: skip
    session.for_all = isinstance(family, str)
    session.attach()
    try:
        if saved is not None:
            session.sample_with(saved, wanted)
        used = [*transformers, *(small for small in smalls if small is not None)]
        chosen = session.attention = Attention(used, attention) if attention is not None else None
    except BaseException:  # an interruption too: weights are on their way here
        Handle(session, None).remove()
        raise
    return Handle(session, chosen)


def _outside(method: Method, asked: Method) -> tuple[str, ...]:
    """What every trace is to say where a method runs otherwise than it was asked for."""
    return (f"seen from outside, so that {type(method).__name__} leaves the blocks alone",) if method != asked else ()


def _of_weights(method: Method) -> str:
    return f"{type(method).__name__} changes the pipeline's weights, for every call"


def _other(session: Session, method: Method, small: Any) -> Ruling:
    """A ruling for some calls of a pipeline that is accelerated."""
    if required(method).experts is not None:
        raise ValueError(f"{_of_weights(method)}: accelerate the pipeline with it instead")
    denoisers, family = denoisers_of(session.pipe), session.family
    known = session.ruling.smalls
    if small is None and known and method.needs_small:
        small = list(known.values())
    inside = method if family.described else method.outside()
    smalls = _smalls(inside, _by_place(small, list(denoisers)), list(denoisers.values()), family)
    mismatches(inside, session.pipe)
    return session.rule(inside, smalls, _outside(inside, method))


def _by_place(small: Any, names: list[str]) -> Any:
    """Small models in the denoisers' order, where they are given by name.

    Raises ``ValueError`` where the names are others.
    """
    if not isinstance(small, Mapping):
        return small
    if set(small) != set(names):
        raise ValueError(f"small={{...}} must name {' and '.join(names)}, got {' and '.join(map(str, small))}")
    return [small[name] for name in names]


def _smalls(
    method: Method, small: nn.Module | Sequence[nn.Module] | None, transformers: list[nn.Module], family: Family
) -> list[nn.Module | None]:
    """One small model a transformer, checked; none where the method has no use for it."""
    if small is None:
        if method.needs_small:
            raise ValueError(f"{type(method).__name__} needs the small model of the family: pass small=...")
        return [None] * len(transformers)
    if not method.needs_small:
        warnings.warn(f"{type(method).__name__} does not use a small model; small=... is ignored", stacklevel=3)
        return [None] * len(transformers)
    several = isinstance(small, Sequence)
    if not all(isinstance(one, nn.Module) for one in (small if several else [small])):
        raise ValueError(f"small must be a transformer, or a list with one for each of the pipeline's, got {small!r}")
    smalls = list(small) if several else [small] * len(transformers)
    if len(smalls) != len(transformers):
        raise ValueError(f"the pipeline has {len(transformers)} transformers, small=... gives {len(smalls)}")
    for large, one in zip(transformers, smalls, strict=True):
        if family.described and type(one).__name__ not in family.transformers:
            raise ValueError(f"small must be one of {family.transformers}, got {type(one).__name__}")
        family.check_small(large, one)
        if one is large:
            raise ValueError("small is the pipeline's own transformer: nothing would be saved")
        ours, theirs = (next(m.parameters()).device for m in (large, one))
        if dtype_of(large) != dtype_of(one) or (ours != theirs and "meta" not in (ours.type, theirs.type)):
            raise ValueError(
                f"the small model is {dtype_of(one)} on {theirs}, the large one {dtype_of(large)} on {ours}"
            )
    return smalls
