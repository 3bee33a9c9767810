"""One accelerated pipeline: what it runs with, and what its handle tells."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ... import capture
from ...cache import Buffers
from ...cache.parked import Parking
from ...engine import graphs
from ...engine.graphs import Captures
from ...engine.report import RunReport
from ...engine.trace import Trace
from ...experts.files import SavedExperts
from ...experts.weights import Experts
from ...methods import Auto, ExpertWeights, Method
from ...models import Family, find
from ...models.call import Stage
from ...models.compiling import Compiler, compiler_of, full_graph
from ...models.denoisers import NAMES, denoisers_of, timestep_argument
from ...models.generic import Generic
from ...ops import certified
from . import ownership
from .attention import Attention
from .auto import Pilot
from .ruling import Ruling
from .sampler import ExpertScheduler
from .scope import Scope
from .workspace import Pool, Workspace

#: Where diffusers keeps the hooks of a module.
REGISTRY = "_diffusers_hook"
#: Of so many different ``Auto`` what was learnt is remembered: a server may ask for any speed.
MOST_PILOTS = 64


class Session:
    """What owns a pipeline's calls, from ``attach`` to ``detach``.

    Attributes:
        removed: whether it is over; calls of copies that it owned are plain from then on.
        traces: of the recent runs, oldest first.
    """

    def __init__(
        self,
        pipe: Any,
        method: Method,
        family: Family,
        smalls: Sequence[nn.Module | None] = (),
        *,
        notes: tuple[str, ...] = (),
        compile: bool = False,
        cuda_graphs: bool | None = False,
        strict: bool = True,
        keep_traces: int = 16,
        parking: Parking | None = None,
        process_group: Any = None,
    ):
        self._pipe, self.family = weakref.ref(pipe), family
        self.compile, self.strict, self.gave_up = compile, strict, False
        self.process_group = process_group  # of the ranks that share the denoisers' calls; None: as these show
        there = denoisers_of(pipe)
        #: The attributes that are accelerated, in the order of the run; a denoiser's number is its place here.
        self.names = tuple(dict.fromkeys((*NAMES[:2], *there)))
        self.families: dict[int, Family] = {}  # by those numbers
        self._numbers = [n for n, name in enumerate(self.names) if name in there]
        self.for_all = False  # whether the family was named, for every denoiser
        self._pilots: dict[Method, Pilot] = {}
        #: What decides where nothing else is named.
        self.ruling = self.rule(method, smalls, notes)
        self.observers: list[Callable[[RunReport], object]] = []  # called after every run
        self.refused: list[str] = []
        #: Whether steps are captured; None for where that is certified and steps are launch-bound.
        self.cuda_graphs = cuda_graphs
        self.parking = parking or Parking()
        self.pool = Pool(self.workspace)
        self.traces: deque[Trace] = deque(maxlen=keep_traces)
        self.removed = True
        # By registered module; given back too where the pipeline is garbage-collected without remove().
        self._modules: list[tuple[nn.Module, bool]] = []  # those that listen; whether they had a registry of hooks
        self._kinds: dict[int, set[str]] = {}
        self.experts: Experts | None = None
        self._expert_stage: Any = None
        self.sampler: ExpertScheduler | None = None
        self.attention: Attention | None = None
        self._scheduler: Any = None  # the pipeline's own, while the experts' stands in its place

    @property
    def pipe(self) -> Any:
        return self._pipe()

    def rule(self, method: Method, smalls: Sequence[nn.Module | None], notes: tuple[str, ...] = ()) -> Ruling:
        """A ruling by a method and the small models beside the pipeline's denoisers; ``notes``: what traces say."""
        pilot = self._pilots.get(method)
        if pilot is None and isinstance(method, Auto):
            while len(self._pilots) >= MOST_PILOTS:
                self._pilots.pop(next(iter(self._pilots))).close()
            pilot = self._pilots[method] = Pilot(method, self.family)
        beside = {n: s for n, s in zip(self._numbers, smalls, strict=False) if s is not None}
        return Ruling(method, beside, notes, pilot)

    @property
    def method(self) -> Method:
        """What decides where nothing else is named."""
        return self.ruling.method

    def workspace(self) -> Workspace:
        """What a run works with, with nothing in it yet."""
        return Workspace(self.parking)

    @property
    def buffers(self) -> Buffers:
        """Those of the workspace that the next run will have."""
        return self.pool.idle[-1].buffers if self.pool.idle else Buffers()

    def captures(self, workspace: Workspace, device: torch.device | None) -> tuple[Captures | None, str]:
        """What captures a workspace's steps for tensors on ``device``, or nothing and why where graphs could be used.

        Each workspace has a backend of its own: graphs of one share memory, and runs may overlap.
        """
        if self.cuda_graphs is False:
            return None, ""
        if self.cuda_graphs is None:
            if device is None or device.type not in capture.DEVICES:  # where nobody expects graphs
                return None, ""
            if why := certified.without_graphs(device):
                return None, why
        if workspace.captures is None:
            clock = graphs.clock() if self.cuda_graphs is None else None
            workspace.captures = graphs.Captures(graphs.backend(), clock=clock)
            if self.cuda_graphs:
                workspace.captures.refused = self.refused  # said once for all
        return workspace.captures, ""

    def attach(self) -> None:
        """Takes over the pipeline's calls.  Raises ``ValueError`` where it is accelerated already."""
        pipe = self.pipe
        ownership.own(pipe, self)
        self._collected = weakref.finalize(pipe, _let_go, self._modules)
        self.removed = False
        try:
            self.listen_to(pipe)
        except BaseException:
            self.detach()
            raise

    def listen_to(self, pipe: Any) -> list[tuple[int, nn.Module]]:
        """The pipeline's transformers as they are now, with their numbers; those that are new listen from now on."""
        found = []
        for number, name in enumerate(self.names):
            module = getattr(pipe, name, None)
            if not isinstance(module, nn.Module) or any(module is known for _, known in found):
                continue
            usable(module)
            if not any(module is known for known, _ in self._modules):
                self.families[number] = self._family_of(number, module)
                ownership.listen(module)
                self._modules.append((module, REGISTRY in module.__dict__))
                self._kinds.setdefault(number, set()).add(ownership.base_of(module).__name__)
            found.append((number, module))
        return found

    def family_of(self, number: int) -> Family:
        """The description of the denoiser of this number."""
        return self.families.get(number, self.family)

    def _family_of(self, number: int, module: nn.Module) -> Family:
        """The description of a denoiser that was not seen yet.

        Raises ``ValueError`` where another kind has taken the place of one that was accelerated.
        """
        if self.for_all:
            return self.family
        own, known = find(module), self.families.get(number)
        if known is None and not self.families:
            return self.family
        if known is not None and type(module).__name__ not in self._kinds.get(number, ()) and own is not known:
            raise ValueError(
                f"the pipeline's {self.names[number]} is a {type(module).__name__} now, and was accelerated as a "
                f"{' and '.join(sorted(self._kinds[number]))}: remove() the handle and accelerate it anew"
            )
        return self.family if own.name == self.family.name else known or own

    def scope(
        self, pipe: Any, args: tuple, kwargs: dict[str, Any], num_steps: int | None = None, guidance: float = 1.0
    ) -> Scope:
        """A scope for one call of the pipeline or of a shallow copy, or for a loop of ``num_steps`` by hand."""
        return Scope(self, pipe, args, kwargs, num_steps, guidance)

    def stages(self, pipe: Any, workspace: Workspace, smalls: Mapping[int, nn.Module]) -> dict[int, Stage]:
        """The parts of a run with their models as they are now, by the id of the module that is called.

        Args:
            smalls: the small models, by the number of the denoiser that each stands beside.
        """
        found, models = {}, []
        modules = self.listen_to(pipe)
        for number, module in modules:
            small = smalls.get(number)
            if small is None and smalls:
                raise ValueError(
                    f"the pipeline has a {self.names[number]} now, and no small model was given for it: remove() the "
                    "handle and accelerate it anew with small=[...]"
                )
            compiler = full_graph if self.compile else compiler_of(module)
            large = workspace.model(module, self.family_of(number), small=False, compiler=compiler)
            helper = self._small(workspace, number, small, compiler)
            if self.experts is not None:
                large.experts = self.experts.models
            self._try_attention(number, large, helper)
            kind = type(module)
            when = timestep_argument(kind) or "timestep"
            found[id(module)] = Stage(number, large, helper, when, large.family.condition_of(kind))
            models += [m for m in (large, helper) if m is not None]
        workspace.keep_only(models, also=self.ruling.smalls.values())
        for stage in found.values():
            kind = type(stage.large.model)
            stage.large.others = tuple(
                s.large for s in found.values() if s is not stage and type(s.large.model) is kind
            )
        return found

    def _try_attention(self, number: int, large: Generic, helper: Generic | None) -> None:
        """Attention that quantises is tried at each model's first forward."""
        if self.attention is None or self.attention.trials is None:
            return
        name, watch = self.names[number], self.attention.trials.watch
        watch(large, name)
        for place, expert in enumerate(large.experts):
            if expert is not large:
                watch(expert, f"{name}'s expert {place}")
        if helper is not None:
            watch(helper, f"small {name}")

    def _small(self, workspace: Workspace, number: int, small: nn.Module | None, compiler: Compiler | None) -> Any:
        if small is None:
            return None
        return workspace.model(small, self.family_of(number), small=True, compiler=compiler)

    def sample_with(self, saved: SavedExperts, wanted: ExpertWeights) -> None:
        """Puts the experts' weights and their scheduler in place of the pipeline's own, until ``detach``.

        Raises ``ValueError`` for weights that do not fit.
        """
        pipe = self.pipe
        workspace = self.pool.take()
        (stage,) = self.stages(pipe, workspace, {}).values()
        self.pool.give_back(workspace, whole=True)
        sampler = ExpertScheduler(saved.trajectory, saved.boundary, wanted.steps, pipe.scheduler)
        self.experts = Experts(stage.large, saved, merge=wanted.merged)
        self.sampler, self._scheduler = sampler, pipe.scheduler
        # Past the pipeline's own __setattr__, which would write the class into its configuration.
        object.__setattr__(pipe, "scheduler", sampler)

    def _experts_off(self) -> None:
        if self.experts is not None:
            self.experts.restore()
            self.experts = None
        pipe = self.pipe
        if self.sampler is not None and pipe is not None and pipe.scheduler is self.sampler:
            object.__setattr__(pipe, "scheduler", self._scheduler)
        self.sampler = self._scheduler = None

    def detach(self) -> None:
        """Gives the pipeline its calls back and leaves each module as it was.

        Raises ``ValueError``, with everything still in place, where the transformer's weights cannot be put back.
        """
        self._experts_off()
        for pilot in self._pilots.values():
            pilot.close()
        self.removed = True
        if self.pipe is not None:
            ownership.disown(self.pipe)
        self._collected.detach()
        _let_go(self._modules)
        self.pool.close()


def _let_go(modules: list[tuple[nn.Module, bool]]) -> None:
    """The modules ask for no scopes any more."""
    while modules:
        module, had_registry = modules.pop()
        ownership.unlisten(module)
        registry = module.__dict__.get(REGISTRY)
        if registry is not None and not had_registry and not registry.hooks:
            del module.__dict__[REGISTRY]  # an empty one, which a call of the pipeline has left behind


def usable(module: nn.Module) -> nn.Module:
    """The module.

    Raises ``ValueError`` where it is wrapped by torch.compile, and where diffusers caches: each would take the other's
    outputs for the model's.
    """
    if hasattr(module, "_orig_mod"):
        raise ValueError(
            "the transformer is wrapped by torch.compile, which would compile vaccel's decisions too; pass "
            "compile=True to accelerate instead (or compile in place with transformer.compile())"
        )
    if getattr(module, "is_cache_enabled", False):
        raise ValueError(
            f"diffusers' own cache is enabled on this {type(module).__name__}: call its disable_cache() first"
        )
    return module


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype that a model computes in, however its weights are stored."""
    dtype = getattr(module, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else next(module.parameters()).dtype
