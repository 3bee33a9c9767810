"""The observations of OpenReview egUfF6cesw, section 4.1, measured on a pipeline and its small model.

Along a full run of the large model: how close direction and magnitude of its conditional output are to those of the
small model at the same input, and to those of the reused residual, x_i + r with r of an earlier step; and the ratio of
the small model's conditional and unconditional magnitudes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from .. import ops
from ..models import find
from ..models.denoisers import main_denoiser

LAGS = (1, 3, 6)


@dataclasses.dataclass
class Observations:
    """Per step, mean over the prompts.  Keys of ``direction`` and ``ratio``: "small" and "residual, lag n"."""

    steps: int
    direction: dict[str, list[float]]
    ratio: dict[str, list[float]]
    small_cond: list[float]
    small_uncond: list[float]

    def middle(self) -> dict[str, float]:
        """Means over the paper's interval, 20 % to 95 % of the steps."""
        span = slice(int(0.2 * self.steps), int(0.95 * self.steps))

        def mean(values: list[float]) -> float:
            chosen = [v for v in values[span] if v == v]
            return sum(chosen) / len(chosen)

        out = {f"cosine, {k}": mean(v) for k, v in self.direction.items()}
        out |= {f"|ratio - 1|, {k}": mean([abs(x - 1) for x in v]) for k, v in self.ratio.items()}
        pairs = zip(self.small_cond, self.small_uncond, strict=True)
        return out | {"|uncond / cond - 1|, small": mean([abs(u / c - 1) for c, u in pairs])}


@torch.no_grad()
def observe(pipe: Any, small: nn.Module, prompts: list[str], call: dict[str, Any], seed: int = 0) -> Observations:
    """Runs the full pipeline on each prompt, and the small model beside it at every step."""
    total: dict[tuple[str, str], torch.Tensor] = {}
    for prompt in prompts:
        for key, values in _observe_one(pipe, small, prompt, call, seed).items():
            total[key] = total.get(key, 0) + values / len(prompts)

    def part(kind: str) -> dict[str, list[float]]:
        return {name: v.tolist() for (k, name), v in total.items() if k == kind}

    norms = part("norm")
    return Observations(call["num_inference_steps"], part("direction"), part("ratio"), norms["cond"], norms["uncond"])


def _observe_one(pipe: Any, small: nn.Module, prompt: str, call: dict[str, Any], seed: int) -> dict:
    large, family = main_denoiser(pipe), find(main_denoiser(pipe))
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # x, v_large, v_small of every call

    def record(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        inputs = family.bind(module, args, kwargs)
        mine = small(**family.small_inputs(small, inputs))[0]
        parts = (family.latents(module, inputs), output[0], mine)
        if family.batched_guidance:  # rows [unconditional; conditional] in one call: the conditional call first
            seen.append(tuple(p.chunk(2)[1].float().clone() for p in parts))
            seen.append(tuple(p.chunk(2)[0].float().clone() for p in parts))
        else:
            seen.append(tuple(p.float().clone() for p in parts))

    hook = large.register_forward_hook(record, with_kwargs=True)
    try:
        pipe(prompt, **{**call, "generator": torch.Generator().manual_seed(seed), "output_type": "latent"})
    finally:
        hook.remove()
    if len(seen) != 2 * call["num_inference_steps"]:
        raise ValueError("the observations need guidance: call with guidance_scale > 1")
    cond, uncond = seen[0::2], seen[1::2]
    nan = torch.full((len(cond),), float("nan"), dtype=torch.float64)
    out = {("norm", "cond"): nan.clone(), ("norm", "uncond"): nan.clone()}
    for i, (x, v, s) in enumerate(cond):
        out["norm", "cond"][i] = float(ops.norm(s))
        out["norm", "uncond"][i] = float(ops.norm(uncond[i][2]))
        candidates = {"small": s}
        for lag in LAGS:
            if i >= lag:
                before = cond[i - lag]
                candidates[f"residual, lag {lag}"] = x + (before[1] - before[0])
        for name, candidate in candidates.items():
            for kind in ("direction", "ratio"):
                out.setdefault((kind, name), nan.clone())
            out["direction", name][i] = float(ops.cosine(v, candidate))
            out["ratio", name][i] = float(ops.norm(v) / ops.norm(candidate))
    return out
