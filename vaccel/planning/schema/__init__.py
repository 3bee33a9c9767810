"""What the files of calibrations and of distilled experts hold, declared: presence, types and lengths of every field.

``check`` raises a ``ValueError`` that names the field, such as "samples.run-0.levels must be a list of numbers, got
null".  What it lets pass can be indexed, counted, added and solved by every reader.  Fields that are not declared are
allowed, except where a reader passes an object on by keywords (``fields``, ``times``).  An artifact that a calibration
is still filling passes too: LeMiCa's unfinished samples, Forecast's inner products before they are added up.

To add a format: a ``Declared`` class, with ``faults`` for what ties its fields together, and its name in ``FORMATS``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType, ValidationError, convert, field

from .schema_errors import place, problem

#: Larger numbers are none that anything measures; squares and sums of smaller ones stay finite in fp64.
LARGEST = 1e50
#: Of a run: enough for every training timestep that there is, few enough that a schedule is solved in memory.
MOST_STEPS = 4096
#: Nesting of an artifact's JSON; what is written is nested a handful of times.
MOST_NESTED = 64

Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Meta(ge=0, le=LARGEST)]
Above0 = Annotated[float, Meta(gt=0, le=LARGEST)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Error = Annotated[float, Meta(ge=0)]  # infinity allowed, as the solver has it
Index = Annotated[int, Meta(ge=0, lt=2**31)]
Count = Annotated[int, Meta(ge=1, lt=2**31)]
Forwards = Annotated[int, Meta(ge=0, lt=2**53)]
Steps = Annotated[int, Meta(ge=1, le=MOST_STEPS)]
Bands = Annotated[int, Meta(ge=1, le=2)]
Values = Annotated[list[Amount], Meta(min_length=1)]
#: (where, what is wrong there)
Fault = tuple[str, str]


class Declared(Struct):
    """An object with these fields; others are nobody's business."""

    def faults(self) -> Iterator[Fault]:
        """What is wrong although every field by itself is right; only the first is told."""
        yield from ()


class Model(Declared, kw_only=True):
    name: str = field(name="class")
    config: str


class Scheduler(Declared, kw_only=True):
    name: str = field(name="class")
    config: dict[str, Any]


class Calibrated(Declared, kw_only=True):
    """What every calibration says of how it was made."""

    model: Model
    scheduler: Scheduler
    call: dict[str, Any] = {}
    prompts: str | UnsetType = UNSET


# --- Forecast -------------------------------------------------------------------------------------------------------


class ForecastSample(Declared, kw_only=True):
    """One full run.  Without ``seconds`` it was learnt from by ``Auto``; without ``products`` those are added up."""

    levels: Annotated[list[Number], Meta(min_length=2, max_length=MOST_STEPS + 1)]
    channels: Count
    elements: Count
    gains: dict[str, Amount]
    forwards: Forwards
    seconds: Amount | UnsetType = UNSET
    trials: list[tuple[Amount, Number]] | UnsetType = UNSET
    products: str | UnsetType = UNSET


class Times(Declared, kw_only=True, forbid_unknown_fields=True):
    full: Above0
    skipped: Amount
    beside: Amount


class Forecast(Calibrated, kw_only=True):
    num_steps: Steps
    bands: Bands
    samples: Annotated[dict[str, ForecastSample], Meta(min_length=1)]
    products: str | UnsetType = UNSET
    times: Times | UnsetType = UNSET

    def faults(self) -> Iterator[Fault]:
        first = next(iter(self.samples.values()))
        steps = len(first.levels) - 1
        for name, sample in self.samples.items():
            at = place("samples", name)
            if len(sample.levels) != len(first.levels):
                yield f"{at}.levels", f"must have {len(first.levels)} entries, as in every sample: {len(sample.levels)}"
            if sample.channels != first.channels:
                yield f"{at}.channels", f"must be {first.channels}, as in every sample, got {sample.channels}"
            for step in sample.gains:
                if not _whole(step) or int(step) >= steps:
                    yield place(f"{at}.gains", step), f"must be named for a step from 0 to {steps - 1}"
            if self.call and sample.seconds is UNSET and sample.trials is UNSET:
                yield f"{at}.seconds", "is missing"
        kept = {"products": self.products}
        kept |= {f"{place('samples', name)}.products": sample.products for name, sample in self.samples.items()}
        if all(text is UNSET for text in kept.values()):
            yield "products", "is missing, and no sample has any"
        for at, text in kept.items():
            if text is not UNSET and (fault := _not_products(text, self.bands, first.channels, steps)):
                yield at, fault


def _not_products(text: str, bands: int, channels: int, steps: int) -> str | None:
    """What keeps a text from being packed inner products [bands, channels, T, T]."""
    wanted = bands * channels * steps * (steps + 1) // 2
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f8")
    except ValueError:
        return "must be base64 of fp64 numbers"
    if len(values) != wanted:
        shape = f"{bands} bands x {channels} channels x {steps} steps"
        return f"must hold {wanted} numbers, for {shape}, got {len(values)}"
    if not bool((np.abs(values) <= LARGEST).all()):
        return f"must hold numbers, at most {LARGEST:g}"
    rows, columns = np.triu_indices(steps)
    for matrix in values.reshape(-1, len(rows)):
        squares = matrix[rows == columns]
        norms = np.sqrt(np.maximum(squares, 0))
        if (squares < 0).any() or (np.abs(matrix) > norms[rows] * norms[columns] * (1 + 1e-6) + 1e-300).any():
            return "must hold inner products: these are none of any vectors"
    return None


# --- LeMiCa ---------------------------------------------------------------------------------------------------------


class LeMiCaSample(Declared, kw_only=True):
    """The edges that were measured so far, by "start-end"."""

    errors: dict[str, Error]
    forwards: Forwards
    small_forwards: Forwards
    done: bool = False


class LeMiCa(Calibrated, kw_only=True):
    num_steps: Steps
    reuse: str
    samples: dict[str, LeMiCaSample]

    def faults(self) -> Iterator[Fault]:
        for name, sample in self.samples.items():
            for edge, error in sample.errors.items():
                at = place(place("samples", name) + ".errors", edge)
                start, _, end = edge.partition("-")
                if not (_whole(start) and _whole(end) and int(start) < int(end) < self.num_steps):
                    yield at, f"must be named for two steps, such as 0-2, from 0 to {self.num_steps - 1}"
                if LARGEST < error < float("inf"):
                    yield at, f"must be at most {LARGEST:g}, or infinite"


# --- methods whose fields are in the artifact -----------------------------------------------------------------------


class MixCacheFields(Declared, kw_only=True, forbid_unknown_fields=True):
    """As ``vaccel.MixCache`` takes them."""

    theta: Amount | UnsetType = UNSET
    d1: Amount | UnsetType = UNSET
    d2: Amount | UnsetType = UNSET
    intervals: str | list[Count] | UnsetType = UNSET
    levels: list[str] | UnsetType = UNSET
    candidates: list[Index] | UnsetType | None = UNSET
    block_branches: str | UnsetType = UNSET
    penalty: bool | UnsetType = UNSET
    interval: Count | UnsetType | None = UNSET
    step_impact: Amount | UnsetType = UNSET
    cfg_impact: Amount | UnsetType = UNSET
    block_impacts: list[Values] | UnsetType = UNSET


class MixCacheSample(Declared, kw_only=True):
    changes: Values
    wide_changes: list[Amount]
    impacts: dict[str, Values]


class MixCache(Calibrated, kw_only=True):
    candidates: list[Index]
    samples: dict[str, MixCacheSample]
    fields: MixCacheFields

    def faults(self) -> Iterator[Fault]:
        blocks = [str(c) for c in self.candidates]
        guided = {name for name, sample in self.samples.items() if "cfg" in sample.impacts}
        levels = ["step", *(["cfg"] if guided else []), *blocks]
        rows: dict[int, str] = {}
        for name, sample in self.samples.items():
            at = f"{place('samples', name)}.impacts"
            for level in levels:
                if level not in sample.impacts:
                    yield place(at, level), "is missing"
            rows |= {len(sample.impacts[block]): at for block in blocks}
            if len(rows) > 1:
                yield at, f"must have one number a step for every block, as in every sample, got {sorted(rows)}"


class TeaCacheFields(Declared, kw_only=True, forbid_unknown_fields=True):
    """As ``vaccel.TeaCache`` takes them."""

    coefficients: Annotated[list[Number], Meta(min_length=1)]
    retention: bool | UnsetType = UNSET
    threshold: Amount | UnsetType = UNSET
    warmup: Count | UnsetType | None = UNSET


class TeaCacheSample(Declared, kw_only=True):
    embedding: Values
    output: Values


class TeaCache(Declared, kw_only=True):
    """Coefficients alone are enough to run with; what they were fitted to, to go on with a calibration."""

    fields: TeaCacheFields
    model: Model | UnsetType = UNSET
    scheduler: Scheduler | UnsetType = UNSET
    samples: dict[str, TeaCacheSample] | UnsetType = UNSET

    def faults(self) -> Iterator[Fault]:
        there = {"model": self.model, "scheduler": self.scheduler, "samples": self.samples}
        missing = [name for name, value in there.items() if value is UNSET]
        if len(missing) in (1, 2):
            yield missing[0], "is missing"
        for name, sample in (self.samples or {}).items():
            if len(sample.embedding) != len(sample.output):
                yield place("samples", name), "must have as many entries in embedding as in output"


class Plain(Declared, kw_only=True):
    """An artifact of anything else."""

    fields: dict[str, Any] | UnsetType = UNSET
    model: Model | UnsetType = UNSET
    scheduler: Scheduler | UnsetType = UNSET
    samples: dict[str, Any] | UnsetType = UNSET


# --- distilled experts ----------------------------------------------------------------------------------------------


class Path(Declared, kw_only=True):
    """A ``Trajectory``."""

    prediction: Literal["flow", "v_prediction", "epsilon"]
    shift: Above0
    alphas_cumprod: list[Fraction]
    num_train_timesteps: Count


class Detail(Declared, kw_only=True):
    """The detail expert; of a "lora" what ``Adapter`` takes."""

    kind: Literal["lora", "full", "none"]
    rank: Annotated[int, Meta(ge=1, le=2**16)] | UnsetType = UNSET
    alpha: Above0 | UnsetType = UNSET
    targets: list[str] | UnsetType = UNSET
    fresh: list[str] | UnsetType = UNSET


class Experts(Declared, kw_only=True):
    base: str
    model: Model
    trajectory: Path
    boundary: Share
    semantic: bool
    detail: Detail
    training: dict[str, dict[str, Any]]
    guidance: dict[str, Any] = {}

    def faults(self) -> Iterator[Fault]:
        path = self.trajectory
        wanted = 0 if path.prediction == "flow" else path.num_train_timesteps
        if len(path.alphas_cumprod) != wanted:
            got = len(path.alphas_cumprod)
            yield "trajectory.alphas_cumprod", f"must have {wanted} entries for {path.prediction}, got {got}"
        if self.detail.kind == "lora":
            for name in ("rank", "alpha", "targets", "fresh"):
                if getattr(self.detail, name) is UNSET:
                    yield f"detail.{name}", "is missing"
        if semantic := self.training.get("semantic"):  # a detail stage asks whether that one is done
            for name in ("iteration", "iterations"):
                if type(semantic.get(name)) is not int:
                    yield f"training.semantic.{name}", "must be a whole number"


#: By the method that an artifact names.
FORMATS: dict[str, type[Declared]] = {
    "forecast": Forecast, "lemica": LeMiCa, "mixcache": MixCache, "teacache": TeaCache, "dcm": Experts,
}  # fmt: skip


def check(data: dict[str, Any], method: str) -> None:
    """Raises ``ValueError`` that names the first field of an artifact of ``method`` that is not what it must be."""
    declared = FORMATS.get(method, Plain)
    try:
        found = convert(data, declared)
    except ValidationError:
        where, what = problem(data, declared)
        raise ValueError(f"{where} {what}") from None
    for where, what in found.faults():
        raise ValueError(f"{where} {what}")


def check_nesting(data: Any) -> None:
    """Raises ``ValueError`` for JSON nested so deep that to write or show it would exhaust the stack."""
    layer = [data] if isinstance(data, (dict, list)) else []
    for _ in range(MOST_NESTED):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not layer:
            return
    raise ValueError(f"it is nested more than {MOST_NESTED} times")


def _whole(text: str) -> bool:
    """Whether this is how a whole number >= 0 is written."""
    return re.fullmatch(r"0|[1-9][0-9]{0,8}", text, re.ASCII) is not None
