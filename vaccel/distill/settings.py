"""The settings of one stage of a distillation, with the authors' as defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

Stage = Literal["semantic", "detail", "single"]

#: By family, from the authors' release and paper; where both are silent, the class's default holds.
PUBLISHED: dict[str, dict[str, Any]] = {
    "wan": {"split": 35, "shift": 17.0, "guidance": 6.0, "matching": 10.0},
    "hunyuanvideo": {"split": 38, "shift": 17.0, "guidance": 6.016, "matching": 1.0},
    "cogvideox": {
        "split": 38, "shift": None, "guidance": 6.0, "batch": 4, "detail_rate": 1e-6, "detail_iterations": 500,
    },
}  # fmt: skip

#: Smallest and largest value of the whole numbers.
_WHOLE = {
    "points": (2, 2**16), "split": (1, 2**16), "lag": (1, 2**16), "rank": (1, 2**16), "alpha": (1, 2**16),
    "warmup": (0, 2**31), "iterations": (1, 2**31), "detail_iterations": (1, 2**31), "batch": (1, 2**20),
    "head_width": (32, 2**16), "head_stride": (1, 2**16), "seed": (-(2**40), 2**40),
}  # fmt: skip
_MOST = 1e6
_POSITIVE = f"above 0 and at most {_MOST:g}", lambda value: 0 < value <= _MOST
_NOT_NEGATIVE = f"from 0 to {_MOST:g}", lambda value: 0 <= value <= _MOST
#: What the other numbers must be, in words and as a test.
_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("shift", "guidance", "huber_c", "rate", "detail_rate", "head_rate", "clip"), _POSITIVE),
    **dict.fromkeys(("temporal", "gan", "adversarial", "matching", "weight_decay"), _NOT_NEGATIVE),
    "ema": ("at least 0 and below 1", lambda value: 0 <= value < 1),
}


@dataclasses.dataclass(frozen=True)
class Distillation:
    """One stage of the distillation of one teacher (arXiv 2506.03123; constants of the authors' release).

    Args:
        stage: "semantic" (all weights, noise above the boundary), "detail" (below it, over the frozen semantic
            expert), or "single": one plain consistency model for all noise, the paper's variant (1).
        points: N, of the teacher's trajectory, evenly spaced in unshifted time: point i lies at (i + 1) / N.
        split: the first point of the semantic phase, whose last end point is ``split / points``.
        shift: of flow matching; None for the scheduler's own, and for diffusion models.
        guidance: scale w that the teacher solves with, where guidance takes two branches (the data must hold both);
            where it is an embedding, the data's own value counts.
        loss: "huber" (the release) or "l2" (eq. 6, 7), with ``huber_c``.
        temporal, lag: weight and latent frames of the temporal coherence loss (semantic stage).
        gan, adversarial, matching: consistency + gan * (adversarial * hinge + matching * feature matching) (detail
            stage); 0 for ``gan`` leaves the discriminator out.
        ema: of the target network (eq. 4); 0 takes the student itself.
        sharing: "lora" trains LoRA and fresh layers on the semantic expert, "full" all weights of a second model
            that starts as the teacher (the paper's variant (2)).
        rank, alpha: of the LoRA.
        rate, weight_decay, clip: of AdamW; ``detail_rate`` of the detail stage, ``head_rate`` of the discriminator.
        warmup: iterations over which the rates rise to their value.
        batch: samples an iteration, over all processes and accumulated parts.
        head_width, head_stride: of the discriminator's heads, one on every ``head_stride``-th block.
        seed: of the samples' order and noise, and of new layers.

    Raises ``ValueError`` for values out of range or inconsistent with each other.
    """

    stage: Stage
    points: int = 50
    split: int = 38
    shift: float | None = 17.0
    guidance: float = 6.0
    loss: Literal["huber", "l2"] = "huber"
    huber_c: float = 0.001
    temporal: float = 1.0
    lag: int = 3
    gan: float = 0.1
    adversarial: float = 5.0
    matching: float = 1.0
    ema: float = 0.0
    sharing: Literal["lora", "full"] = "lora"
    rank: int = 128
    alpha: int = 256
    rate: float = 1e-6
    detail_rate: float = 5e-6
    head_rate: float = 1e-5
    weight_decay: float = 0.001
    clip: float = 1.0
    warmup: int = 0
    iterations: int = 1000
    detail_iterations: int = 1000
    batch: int = 6
    head_width: int = 1024
    head_stride: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise ValueError(message)

        require(self.stage in ("semantic", "detail", "single"), f"unknown stage {self.stage!r}")
        require(self.loss in ("huber", "l2"), f"loss is 'huber' or 'l2', not {self.loss!r}")
        require(self.sharing in ("lora", "full"), f"sharing is 'lora' or 'full', not {self.sharing!r}")
        for name, (least, most) in _WHOLE.items():
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
            require(good, f"{name} must be a whole number from {least} to {most}, got {value!r}")
        for name, (said, fits) in _NUMBERS.items():
            value = getattr(self, name)
            good = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (name == "shift" and value is None):  # the scheduler's own
                require(good and fits(value), f"{name} must be {said}, got {value!r}")
        require(0 < self.split < self.points, f"split must lie inside the {self.points} points, got {self.split}")
        require(self.head_width % 32 == 0, f"head_width must be a multiple of 32 (GroupNorm), got {self.head_width}")

    @classmethod
    def published(cls, stage: Stage, family: str, **changes: Any) -> Distillation:
        """The authors' settings for a family (their HunyuanVideo's where they published none), single ones changed."""
        return cls(stage, **{**PUBLISHED.get(family, PUBLISHED["hunyuanvideo"]), **changes})

    @property
    def boundary(self) -> float:
        """Unshifted time at which the detail expert takes over."""
        return self.split / self.points

    @property
    def starts(self) -> tuple[int, int]:
        """First and last point that the stage starts from."""
        return {
            "semantic": (self.split, self.points - 1),
            "detail": (0, self.split - 1),
            "single": (0, self.points - 1),
        }[self.stage]

    @property
    def end(self) -> int:
        """The phase's end point; -1 is the clean end."""
        return self.split - 1 if self.stage == "semantic" else -1

    @property
    def discriminates(self) -> bool:
        return self.stage == "detail" and self.gan > 0

    @property
    def steps(self) -> int:
        return self.detail_iterations if self.stage == "detail" else self.iterations

    @property
    def learning_rate(self) -> float:
        return self.detail_rate if self.stage == "detail" else self.rate

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))
