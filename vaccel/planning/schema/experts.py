"""The description of distilled experts (``dual_expert.json``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType, field

from .fields import Above0, Count, Declared, Fault, Fraction, Model, Share, Weights


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
    weights: Weights | UnsetType = UNSET  # files of earlier versions do not say
    guidance: dict[str, Any] = field(default_factory=dict)

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
