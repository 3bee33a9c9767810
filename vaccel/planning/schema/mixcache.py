"""MixCache's profile: how much each level changes, and what reusing it costs."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET, UnsetType

from .errors import place
from .fields import Amount, Calibrated, Count, Declared, Fault, Index, Values


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
