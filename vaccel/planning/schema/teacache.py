"""TeaCache's coefficients, and the changes that they were fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from .errors import place
from .fields import Amount, Count, Declared, Fault, Model, Number, Scheduler, Values


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
