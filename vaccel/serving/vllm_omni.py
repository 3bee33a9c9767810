"""vaccel as a cache backend of vLLM-Omni's diffusion pipelines: ``cache_backend="vaccel"``.

vLLM-Omni loads ``register`` in each of its processes, by the entry point ``vllm_omni.general_plugins``.  Its backends
are a fixed list in one function, ``get_cache_backend``: ``register`` puts a function in its place that knows one name
more and hands on every other.  The backend itself is vLLM-Omni's ``CacheBackend``.  Calls of the pipeline are taken
over by vLLM-Omni's own hooks, those of the transformers as ``vaccel.accelerate`` does it; no class is touched.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from typing import Any

import torch

from ..cache import Buffers
from ..methods import Auto, Method, RunInfo
from ..planning.flow import Flow
from ..planning.schema import MOST_STEPS
from .settings import TAKES, settings

NAME = "vaccel"
RUNNER = "vllm_omni.diffusion.worker.diffusion_model_runner"
logger = logging.getLogger("vaccel")


def register() -> None:
    """Makes ``cache_backend="vaccel"`` known to vLLM-Omni in this process; again, it does nothing.

    Never raises: a host that has changed keeps all it had, and the log says why this backend is missing.
    """
    try:
        from vllm_omni.diffusion.cache import selector

        known = selector.get_cache_backend
        if not isinstance(known, _Selector):
            known = selector.get_cache_backend = _Selector(known)
        for module in (sys.modules.get(RUNNER), sys.modules.get("vllm_omni.diffusion.cache")):  # which have it by name
            if hasattr(module, "get_cache_backend"):
                module.get_cache_backend = known
    except Exception as error:
        logger.warning("vaccel: no cache backend of this vLLM-Omni: %s: %s", type(error).__name__, error)


class _Selector:
    """vLLM-Omni's ``get_cache_backend``, and one name more."""

    def __init__(self, known: Any):
        self.known = known
        functools.update_wrapper(self, known)

    def __call__(self, cache_backend: str | None, cache_config: Any) -> Any:
        if cache_backend != NAME:
            return self.known(cache_backend, cache_config)
        return backend_class()(cache_config)


def given_fields(config: Any) -> Any:
    """What a host's user has set, of the host's ``DiffusionCacheConfig`` or a dict.

    Raises ``ValueError`` for what belongs to its other backends.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    fresh = type(config)()
    names = [field.name for field in dataclasses.fields(config) if not field.name.startswith("_")]
    others = [name for name in names if getattr(config, name) != getattr(fresh, name)]
    if others:
        raise ValueError(f"vaccel's cache_config: {others[0]} is of another cache backend; {TAKES}")
    return dict(getattr(config, "_extra_params", None) or {})


@functools.cache
def backend_class() -> type:
    """The backend, once vLLM-Omni can be imported: a ``CacheBackend``."""
    from vllm_omni.diffusion.cache.base import CacheBackend
    from vllm_omni.diffusion.hooks import HookRegistry, ModelHook

    class Generation(ModelHook):
        """Around a call of the pipeline: its run."""

        def __init__(self, backend: VaccelBackend):
            self.backend = backend

        def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            return self.backend.generation(module, self.fn_ref.original_forward, args, kwargs)

    class VaccelBackend(CacheBackend):
        """vaccel's engine beneath one of vLLM-Omni's pipelines.

        Attributes:
            handle: the ``vaccel.Handle`` of the pipeline once it is enabled: traces, ``on_run``.
        """

        def __init__(self, config: Any):
            super().__init__(config)
            self.settings = settings(given_fields(config))
            self.handle: Any = None
            self._known: dict[int, str] = {}
            self._said = False
            self._steps: int | None = None  # of the next generation, where the host has said

        def enable(self, pipeline: Any) -> None:
            """Takes over the pipeline's denoising; raises ``ValueError`` where that cannot be, and leaves it as it was.

            Ranks that share a request decide together (``vaccel.parallel``); the transformer's output is whole on each.
            """
            if self.handle is not None:
                raise ValueError("this backend serves a pipeline already: one backend a pipeline")
            self.handle = _accelerated(pipeline, self.settings, _together(self.settings.method))
            try:
                HookRegistry.get_or_create(pipeline).register_hook(NAME, Generation(self))
            except BaseException:
                self.remove()
                raise
            self.enabled = True

        def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
            """A generation of so many steps begins with the pipeline's next call.

            Raises ``ValueError`` for a number that is none, and where the method is for another one and ``strict``.
            """
            self._steps = None
            if type(num_inference_steps) is not int or num_inference_steps < 0:
                raise ValueError(f"num_inference_steps must be a whole number, got {num_inference_steps!r:.60}")
            if why := self._misfit(num_inference_steps):
                if self.settings.strict:
                    raise ValueError(f"vaccel: a request of {num_inference_steps} steps: {why}")
                if verbose:
                    logger.warning("vaccel: a request of %d steps is computed in full: %s", num_inference_steps, why)
                return
            self._steps = num_inference_steps

        def _misfit(self, steps: int) -> str:
            """Why the method cannot serve so many steps; "" where it can, and for 0, steps that nobody knows yet."""
            if steps and steps not in self._known:
                if len(self._known) >= 256:  # a user may ask for any number
                    self._known.clear()
                self._known[steps] = _misfit(self.settings.method, steps)
            return self._known.get(steps, "")

        def generation(self, pipeline: Any, forward: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
            """A call of the pipeline: a run of its own if the host has announced it, else the plain pipeline."""
            announced, self._steps = self._steps, None
            session = self.handle._session if self.handle is not None else None
            if announced is None or session is None:
                return forward(*args, **kwargs)
            with session.scope(pipeline, (), {}) as scope:
                made = forward(*args, **kwargs)
            if (seen := _followed(scope)) and not self._said:
                self._said = True  # once: it will be so for every request
                logger.warning("vaccel: %s (%s)", seen, type(pipeline).__name__)
            return made

        def remove(self) -> None:
            """Gives the pipeline back as it was, but for the host's empty registry of hooks."""
            handle, self.handle, self.enabled = self.handle, None, False
            if handle is not None:
                registry = getattr(handle._session.pipe, "_hook_registry", None)
                if registry is not None:
                    registry.remove_hook(NAME)
                handle.remove()

    return VaccelBackend


def _accelerated(pipeline: Any, wanted: Any, group: Any) -> Any:
    """The pipeline's handle.  Its transformers are vLLM-Omni's own classes: whatever they are called, they are seen
    from outside."""
    from ..api import accelerate

    return accelerate(
        pipeline, wanted.method, family="generic", strict=wanted.strict, cuda_graphs=False, process_group=group
    )


def _followed(scope: Any) -> str:
    """What of a generation that has ended well could not be followed; "" where all could."""
    if scope.run is None:
        return "" if scope.session.gave_up else "nothing was accelerated: no call of a transformer was seen"
    trace = scope.run.trace
    if trace.finished or scope.session.gave_up:
        return ""
    return (
        f"steps after the first {len(trace.steps)} of {trace.num_steps} could not be followed and were computed in full"
    )


def _misfit(method: Method, steps: int) -> str:
    if isinstance(method, Auto):  # which finds one that fits
        return ""
    if steps > MOST_STEPS:
        return f"more than {MOST_STEPS}"
    try:
        method.start(RunInfo(steps, Buffers(), flow=Flow.even(steps)))
    except ValueError as error:
        return str(error)
    return ""


def _together(method: Method) -> Any:
    """The process group of the ranks that work on one request; None where this one works alone.

    Raises ``ValueError`` for a transformer in parts, and where ranks that have requests of their own would have to be
    told from those that share one.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if torch.distributed.get_world_size() < 2:
        return None
    from vllm_omni.diffusion.distributed import parallel_state

    if parallel_state.get_pipeline_parallel_world_size() > 1:
        raise ValueError("vaccel: with pipeline parallelism no rank sees the model's output: set it to 1")
    if parallel_state.get_data_parallel_world_size() == 1:
        return parallel_state.get_world_group().cpu_group
    measured = isinstance(method, Auto) and method.speedup is not None
    if measured or (method.adaptive and not isinstance(method, Auto)) or getattr(method, "watching", None):
        raise ValueError(
            f"vaccel: with data parallelism {type(method).__name__} may decide by what one rank alone has measured; "
            "take artifact and budget, or budget alone"
        )
    return None
