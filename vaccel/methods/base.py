"""What a method is: plain data that starts a fresh policy for every run.

The engine asks the policy ``decide(step)`` once a step, before any forward, and tells it ``observe(step, seen)`` what
came of it before the next one is decided.  A method says in advance what it needs kept (``stores``), what it wants to
see (``watches``) and whether it needs a small model; it never learns which model, library or device it runs on.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import msgspec
import torch

from ..actions import Action, ModelName, Weights
from ..cache import Buffers, Store
from ..planning import artifacts, schema
from ..planning.channels import Channels
from ..planning.flow import Flow
from ..planning.schema.errors import problem, shown
from ..signals import Signal
from .availability import outside_of_blocks


@dataclasses.dataclass(frozen=True)
class ExpertWeights:
    """Whose weights a method's ``Expert`` actions switch between: a saved folder, or a name on the hub.

    ``steps`` is how many steps its sampler makes; ``merged`` whether the detail expert's LoRA is added into copies of
    the weights that it belongs to.
    """

    folder: str
    steps: int
    merged: bool = False


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a policy may know when a run starts: the number of steps, storage for what it wants to keep, how many
    blocks the large model has (0 if unknown), the run's noise levels (None if unknown), and where to
    write what the trace shall say of the run (``note``), expect of it (``predict``, numbers by name) and carry
    (``deliver``, anything)."""

    num_steps: int
    buffers: Buffers
    depth: int = 0
    flow: Flow | None = None
    note: Callable[[str], None] = lambda text: None
    deliver: Callable[[Any], None] = lambda delivered: None
    predict: Callable[..., None] = lambda **values: None


class Step(Protocol):
    """The step a policy decides on."""

    index: int
    num_steps: int

    def modulation_change(self, model: ModelName, *, projected: bool = False) -> list[float] | None:
        """Relative L1 of this step's timestep embedding (or its projection for the blocks) from the last step's.

        One value for all rows where they share the timestep, else one a row; None where there is nothing to compare
        with, as at the first step of a run.
        """

    @property
    def latents(self) -> torch.Tensor:
        """The latents that enter the step, [B, ...]; valid until the next one."""

    @property
    def channels(self) -> Channels:
        """Where the latents' channels lie."""

    @property
    def ops(self) -> Any:
        """The ops without their checks, for tensors like the models' outputs (``vaccel.ops.inner``)."""

    @property
    def level(self) -> float:
        """The noise level s of the step (``vaccel.planning.flow``)."""

    def record(self, **metrics: Any) -> None:
        """Writes values into the trace."""


class Observation:
    """What happened at a step: the action carried out, and the signals that the method watches.

    Each signal (``vaccel.signals``) is an attribute by its name, None where the step does not show it.  Tensors are
    valid until the next step.
    """

    action: Action
    prediction: torch.Tensor | None = None
    denoised: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    small: torch.Tensor | None = None
    branches: tuple[torch.Tensor, torch.Tensor | None] | None = None
    conditional: tuple[torch.Tensor, torch.Tensor | None] | None = None
    block_changes: Mapping[int, torch.Tensor] = MappingProxyType({})
    velocity: torch.Tensor | None = None
    forecast_error: torch.Tensor | None = None
    velocity_products: torch.Tensor | None = None

    def __init__(self, action: Action):
        self.action = action


class Policy:
    """The state of a method during one run."""

    def decide(self, step: Step) -> Action:
        raise NotImplementedError

    def observe(self, step: Step, seen: Observation) -> None:
        """Called after every step but the last, before the next is decided.

        A method that watches only ``early`` signals is called within the step, as soon as its first branch is done:
        what it asks of the device then is ready when the next step is decided.
        """

    def reshaped(self) -> None:
        """The latents have another shape from this step on (samples have finished, the picture has grown): whatever is
        kept a sample or as a tensor is of others.  Called before ``decide``."""

    def amended(self, action: Action, call: Any) -> Action | None:
        """The step's action where a later branch, the one that ``call`` is of, lacks what it reuses.

        Its guidance has paused, for example, and so it was computed at other steps than the first one.  None where it
        is to be computed.
        """
        return None

    def expects(self, index: int) -> Weights | None:
        """The weights by which the step that was just computed would have been forecast, for ``ForecastError``."""
        return None

    def finish(self, step: Step, seen: Observation) -> None:
        """Called once, when the last step is over; ``seen`` is what the signals show of it."""


_METHODS: dict[str, type[Method]] = {}


class Method:
    """Base of the configs.  Subclasses are frozen dataclasses: comparable, hashable, to and from JSON."""

    id: ClassVar[str] = ""
    #: Presets by model name; see ``preset``.
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    #: Values that its steps record -> (what they are in words, the field that holds their bound, "" for none); by their
    #: first word where the name has several, as one for every level, and not under its own.
    records: ClassVar[Mapping[str, tuple[str, str]]] = MappingProxyType({})
    #: The model and scheduler it was calibrated with; empty for a method that fits every pipeline.
    fitted: ClassVar[artifacts.Fitted] = ()
    #: Whether it watches the embedding of the timestep inside the model.
    embeds: ClassVar[bool] = False
    #: Whether it may run on others all the same.
    allow_mismatch: ClassVar[bool] = False
    #: Whether it makes what another solver needs of the same calibration: then that is said and not refused.
    any_solver: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _METHODS[cls.id] = cls

    @property
    def needs_small(self) -> bool:
        return False

    @property
    def experts(self) -> ExpertWeights | None:
        """Whose weights it switches between; None for a method that leaves the pipeline's weights alone.

        Raises ``ValueError`` for a method that switches and does not know between which.
        """
        return None

    @property
    def stores(self) -> tuple[Store, ...]:
        """What computed steps must leave behind (``vaccel.cache``), one of a kind and a model."""
        return ()

    @property
    def watches(self) -> tuple[type[Signal], ...]:
        """Which signals ``observe`` wants (``vaccel.signals``)."""
        return ()

    @property
    def adaptive(self) -> bool:
        """Whether the run itself decides what is skipped (a run that skips nothing is then worth a warning)."""
        return True

    def outside(self) -> Method:
        """The method as it runs on a model that is seen from outside.

        Raises ``ValueError``, which names the methods that do, where it reaches for the model's blocks.
        """
        inside = [store for store in self.stores if store.inside]
        if inside or self.embeds:
            what = "blocks" if inside else "embedding of the timestep"
            raise ValueError(
                f"{type(self).__name__} needs the {what} of a model that a family describes, and this one is seen from "
                f"outside; what works on it: {outside_of_blocks()}"
            )
        return self

    def keeps(self, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        """What its policy keeps in a run's buffers, by name, as tensors like ``sample``: one call's latents [B, ...].

        For planning memory: ``sample`` lies on the meta device, where tensors have shapes and no storage.
        """
        return {}

    def start(self, run: RunInfo) -> Policy:
        """A fresh policy.  Raises ``ValueError`` when the method does not fit the run."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Plain data with the method's id; ``vaccel.methods.method_from_json`` reads it back."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"method": self.id, **fields}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Method:
        """The config from ``to_json``'s fields, lists back to tuples, nested methods back to methods."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := set(fields) - set(known):
            raise ValueError(f"{cls.__name__} has no field {min(map(str, unknown))!r}; it has {sorted(known)}")
        declared, made = typing.get_type_hints(cls), {}
        for name, field in known.items():
            if name in fields:
                made[name] = _unplain(fields[name])
                if isinstance(made[name], Method) and _takes_methods(declared[name]):
                    pass  # the class itself judges which
                else:
                    _check_plain(fields[name], declared[name], f"{cls.__name__}.{name}")
            elif field.default is dataclasses.MISSING:
                raise ValueError(f"{cls.__name__}.{name} is missing")
        try:
            return cls(**made)
        except (TypeError, OverflowError, AttributeError) as error:  # a whole that no field alone gives away
            raise ValueError(f"{cls.__name__}: {error}") from None

    @classmethod
    def preset(cls, model: str, **overrides: Any) -> Method:
        """The published setting for a model, by name; keyword arguments replace single fields.

        Raises ``ValueError`` for a model nothing is published for.
        """
        if model not in cls.presets:
            known = ", ".join(sorted(cls.presets)) or "none"
            raise ValueError(
                f"no {cls.__name__} preset for {model!r} (known: {known}); another model's numbers would not fit: "
                f"`vaccel calibrate {cls.id}` measures your own"
            )
        return cls(**{**cls.presets[model], **overrides})

    @classmethod
    def load(cls, artifact: str | Path, *args: Any, **overrides: Any) -> Method:
        """The method with what a calibration artifact measured; further arguments as for the class itself.

        Raises ``ValueError`` for a file that is no whole artifact of this method, ``FileNotFoundError`` for none.
        """
        data = artifacts.read(artifact, cls.id)
        fields = {k: _unplain(v) for k, v in data["fields"].items()}
        if "fitted" in {f.name for f in dataclasses.fields(cls)} and "model" in data:  # coefficients alone are of none
            fields["fitted"] = artifacts.fitted(data)
        return cls(*args, **{**fields, **overrides})


def required(method: Any) -> Method:
    """The method.  Raises ``ValueError`` for anything else."""
    if not isinstance(method, Method):
        raise ValueError(f"method must be a vaccel method such as vaccel.TeaCache(...), got {method!r}")
    return method


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return value.to_json()
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _unplain(value: Any) -> Any:
    if isinstance(value, dict) and "method" in value:
        return method_from_json(value)
    return tuple(_unplain(v) for v in value) if isinstance(value, list) else value


def _check_plain(value: Any, declared: Any, at: str) -> None:
    """Raises ``ValueError`` for a value of JSON that is not of a field's declared type, or that holds no numbers."""
    value = _listed(value)
    try:
        msgspec.convert(value, declared)
    except msgspec.ValidationError:
        where, what = problem(value, declared, at)
        raise ValueError(f"{where} {what}") from None
    for number in _numbers(value):
        if number != number or abs(number) >= 2**63:
            raise ValueError(f"{at} must hold numbers that can be reckoned with, got {shown(number)}")


def _takes_methods(declared: Any) -> bool:
    """Whether a field is declared to hold a method."""
    members = typing.get_args(declared) or (declared,)
    return any(isinstance(member, type) and issubclass(member, Method) for member in members)


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, (list, tuple)) else value


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    for held in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from _numbers(held)


def method_from_json(data: dict[str, Any]) -> Method:
    """A method from ``Method.to_json``.

    Raises ``ValueError`` for a method that does not exist, and one that names the field where it is missing, unknown or
    not what it must be.
    """
    if not isinstance(data, dict):
        raise ValueError(f"a method must be an object with its name in the field method, got {shown(data)}")
    schema.check_nesting(data)
    fields = dict(data)
    name = fields.pop("method", None)
    if not isinstance(name, str) or name not in _METHODS:
        raise ValueError(f"unknown method {shown(name)}; known: {', '.join(sorted(filter(None, _METHODS)))}")
    return _METHODS[name].from_fields(fields)


def cautious(**values: list[float]) -> dict[str, Any]:
    """One metric as the trace shows it: every row's value, and for a batch which row decided (the largest)."""
    ((name, rows),) = values.items()
    if len(rows) == 1:
        return {name: rows}
    return {name: rows, "decided_by": max(range(len(rows)), key=rows.__getitem__)}


def require(condition: bool, message: str) -> None:
    """Raises ``ValueError(message)`` unless ``condition``."""
    if not condition:
        raise ValueError(message)


def require_threshold(name: str, value: Any) -> None:
    """A threshold is a finite number, zero (never skip) or more."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    require(good, f"{name} must be a finite number >= 0, got {value!r}")
