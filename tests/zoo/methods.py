"""Every method that works on a pipeline: it runs, it skips, and it says which calls it made."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch

import vaccel
from vaccel.methods import Method
from vaccel.models import find
from vaccel.models.denoisers import denoisers_of

from .base import Case, generate
from .check import STEPS, Everything, accelerated


def candidates(steps: int, folder: str) -> dict[str, Method]:
    """One setting of every method for a run of so many steps, which skips some of them."""
    half = [0, *range(1, steps, 2)]
    path = sorted({0, 1, steps - 1} | ({steps // 2} if steps > 4 else set()))
    return {
        "Schedule": vaccel.Schedule(half, num_steps=steps),
        "Schedule, output": vaccel.Schedule(half, num_steps=steps, reuse="output"),
        "Schedule, forecast": vaccel.Schedule(half, num_steps=steps, reuse="forecast"),
        "LeMiCa": vaccel.LeMiCa(tuple(path), steps, reuse="residual"),
        "Forecast": vaccel.Forecast(tuple(path), steps),
        "EasyCache": vaccel.EasyCache(threshold=1e6, warmup=2),
        "MixCache": vaccel.MixCache(theta=10.0, d1=10.0, d2=20.0, levels=("step", "cfg")),
        "DirectionMagnitude": vaccel.DirectionMagnitude(threshold=1e6, first=0.3, last=0.9),
        "SRDiffusion": vaccel.SRDiffusion(threshold=10.0, fix_steps=1, signal="prediction"),
        "Auto": vaccel.Auto(speedup=1.5, learn=1, folder=folder),
    }


def small_of(case: Case, pipe: Any) -> dict[str, Any]:
    """Other weights of the same models, in the place of small ones."""
    found = {}
    for name, module in denoisers_of(pipe).items():
        small = copy.deepcopy(module)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for p in small.parameters():
                if p.is_floating_point():
                    p.mul_(1 + 0.05 * torch.randn(p.shape, generator=generator))
        found[name] = small
    return found


def check_methods(case: Case) -> dict[str, str]:
    """Method -> "" where it works, else what is wrong; "not: " and why where it says that it cannot."""
    pipe = case.build()
    with accelerated(pipe, Everything()) as handle:
        generate(case, pipe, STEPS)
        lengths, full = [t.num_steps for t in handle.traces], sum(t.calls["large"] for t in handle.traces)
    plain, found = generate(case, pipe, STEPS), {}
    if len(set(lengths)) > 1:
        return {"Schedule": f"not: its loops have {lengths} steps, and a fixed schedule is for one number"}
    smalls = small_of(case, pipe)
    with tempfile.TemporaryDirectory() as folder:
        for name, method in candidates(lengths[0], folder).items():
            found[name] = _one(case, pipe, name, method, smalls, full)
    again = generate(case, pipe, STEPS)
    if any(not torch.equal(a, b) for a, b in zip(plain, again, strict=True)):
        found["remove"] = "after remove() the pipeline is another"
    return found


def _one(case: Case, pipe: Any, name: str, method: Method, smalls: dict[str, Any], full: int) -> str:
    options = {"small": smalls} if method.needs_small else {}
    times = 2 if name == "Auto" else 1  # it learns from the first run
    try:
        with accelerated(pipe, method, **options) as handle:
            for _ in range(times):
                result = generate(case, pipe, STEPS)
            runs = handle.traces[len(handle.traces) * (times - 1) // times :]
    except ValueError as error:
        return f"not: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    letters, made = "".join(t.timeline() for t in runs), sum(t.calls["large"] for t in runs)
    # Whether these two skip depends on what they see: the clock, how outputs change.  A forward to see what an answer
    # looks like may be made for every shape.
    if name not in ("Auto", "SRDiffusion") and (set(letters) <= {"F"} or made > full):
        return f"saved nothing: {made} forwards of {full} ({letters})"
    if any(not bool(torch.isfinite(t).all()) for t in result if t.is_floating_point()):
        return f"not finite ({letters})"
    return ""


def described(case: Case, pipe: Any) -> bool:
    """Whether a family says where the blocks of its first denoiser are."""
    return find(getattr(pipe, case.denoisers[0])).described
