"""The teacher's probability-flow path and the exact solver step on it: flow matching or diffusion, by one pair (a, s).

x = a x_0 + s noise at every time u in [0, 1] (1 is pure noise).  Time is unshifted: the shift is in the map from u to
s.  x_0 and the noise follow from a prediction, and the first-order solver Phi(x, prediction, from, to) of arXiv
2506.03123 combines them at another time: Euler for flow matching, DDIM for diffusion.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Level(NamedTuple):
    """A noise level, or one a row: the timestep as the scheduler counts it, a and s.  Tensors [B] in fp64."""

    timestep: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor

    def like(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a and s in x's dtype, one a row of x [B, ...]."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        return tuple(v.to(x.device, x.dtype).view(shape) for v in (self.alpha, self.sigma))


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The path of one teacher.

    Args:
        prediction: what the model predicts: "flow" (noise - x_0), "v_prediction" or "epsilon".
        shift: of flow matching: s = shift u / (1 + (shift - 1) u).
        alphas_cumprod: of diffusion, [number of training timesteps]; empty for flow matching.
        num_train_timesteps: how finely the scheduler counts timesteps.

    Raises ``ValueError`` for anything else.
    """

    prediction: str = "flow"
    shift: float = 1.0
    alphas_cumprod: tuple[float, ...] = ()
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.prediction not in ("flow", "v_prediction", "epsilon"):
            raise ValueError(f"no trajectory for prediction {self.prediction!r}")
        if not self.shift > 0:
            raise ValueError(f"shift must be above 0, got {self.shift}")
        if (self.prediction == "flow") == bool(self.alphas_cumprod):
            raise ValueError("a diffusion trajectory needs alphas_cumprod, one of flow matching has none")

    @classmethod
    def of(cls, scheduler: Any, shift: float | None = None) -> Trajectory:
        """The path that a diffusers scheduler samples; ``shift`` replaces the scheduler's own (flow matching only)."""
        config = scheduler.config
        steps = config.get("num_train_timesteps", 1000)
        kind = config.get("prediction_type", "flow_prediction")
        if kind == "flow_prediction" or config.get("use_flow_sigmas", False):
            own = config.get("flow_shift", config.get("shift", 1.0))
            if shift is None and config.get("use_dynamic_shifting", False):
                raise ValueError(f"{type(scheduler).__name__} takes its shift from the picture's size: name one")
            return cls("flow", float(own if shift is None else shift), num_train_timesteps=steps)
        if shift is not None:
            raise ValueError(f"{type(scheduler).__name__} samples a diffusion model, whose path has no shift")
        return cls(kind, alphas_cumprod=tuple(scheduler.alphas_cumprod.double().tolist()), num_train_timesteps=steps)

    def level(self, u: torch.Tensor | Sequence[float]) -> Level:
        """The noise levels at unshifted times u [B]; 0 is the clean end, where a = 1 and s = 0."""
        u = torch.as_tensor(u, dtype=torch.float64)
        if self.prediction == "flow":
            sigma = self.shift * u / (1 + (self.shift - 1) * u)
            return Level(sigma * self.num_train_timesteps, 1 - sigma, sigma)
        index = (u * self.num_train_timesteps).round().long() - 1
        cumulative = torch.tensor(self.alphas_cumprod, dtype=torch.float64)[index.clamp(min=0).cpu()].to(u.device)
        cumulative = torch.where(index < 0, torch.ones_like(cumulative), cumulative)
        return Level(index.clamp(min=0).double(), cumulative.sqrt(), (1 - cumulative).sqrt())

    def parts(self, x: torch.Tensor, prediction: torch.Tensor, at: Level) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_0, noise) of x [B, ...] by a prediction."""
        a, s = at.like(x)
        if self.prediction == "flow":
            return x - s * prediction, x + a * prediction
        if self.prediction == "v_prediction":
            return a * x - s * prediction, s * x + a * prediction
        return (x - s * prediction) / a, prediction

    def solve(self, x: torch.Tensor, prediction: torch.Tensor, start: Level, end: Level) -> torch.Tensor:
        """Phi(x, prediction, start, end): one first-order step [B, ...]; x itself where both levels are one."""
        if self.prediction == "flow":  # Euler, which is exact where start is end
            step = (end.sigma - start.sigma).to(x.device, x.dtype)  # subtracted in fp64, before rounding
            return x + step.view(-1, *[1] * (x.ndim - 1)) * prediction
        clean, noise = self.parts(x, prediction, start)
        a, s = end.like(x)
        same = (end.sigma == start.sigma).to(x.device).view(s.shape)
        return torch.where(same, x, a * clean + s * noise)

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, at: Level) -> torch.Tensor:
        """The forward process (eq. 1): a x_0 + s noise."""
        a, s = at.like(clean)
        return a * clean + s * noise

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trajectory:
        return cls(**{**data, "alphas_cumprod": tuple(data["alphas_cumprod"])})


def expert_times(steps: int, boundary: float) -> tuple[float, ...]:
    """Where each of ``steps`` >= 2 steps with two experts begins, in unshifted time (arXiv 2506.03123, section 6).

    Half of the steps lie above ``boundary`` and half below (of an odd number the first phase has one more), evenly in
    unshifted time inside each.  With shift 17 and boundary 0.76, 4 steps begin at sigma 1, .992, .9818, .9124.
    Raises ``ValueError`` for fewer than 2 steps or a boundary outside (0, 1).
    """
    if steps < 2:
        raise ValueError(f"two experts need at least 2 steps, got {steps}")
    if not 0 < boundary < 1:
        raise ValueError(f"boundary must lie between 0 and 1, got {boundary}")
    detail = steps // 2
    semantic = steps - detail
    first = [1 - (1 - boundary) * j / semantic for j in range(semantic)]
    return (*first, *(boundary * (1 - j / detail) for j in range(detail)))
