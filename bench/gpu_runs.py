"""Parts of the GPU suite that are about the kernels' table, 50-step schedules and experts; the suite parses options."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import e2e
import torch
from gpu_parts import Measured

import vaccel
from vaccel.integrations.diffusers.attention import BOUND, NAMES, inexact

#: Random weights have errors of their own, which say nothing of trained ones: the time is measured whatever it is.
ANY = 1e6


def accelerated(pipe: Any, actions: list[Any], small: Any, **options: Any) -> Any:
    """The handle of a pipeline that does ``actions``, without CUDA graphs unless they are asked for."""
    method, options = vaccel.Schedule.from_actions(actions), {"cuda_graphs": False, **options}
    return vaccel.accelerate(pipe, method, small=small if method.needs_small else None, **options)


# -- the kernels' table ------------------------------------------------------------------------------------------------


def certify(measured: Measured, device: str, seconds: float, dry: bool) -> None:
    """Measures the table that vaccel would make at its first use, into the user's cache; a dry run into another one."""
    from vaccel import certify as proving

    with contextlib.ExitStack() as stack, measured.measuring("certify"):
        if dry:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(_environment(XDG_CACHE_HOME=folder))
            stack.enter_context(_attribute(proving, "SIZES", proving.SIZES[:1]))
        began = time.monotonic()
        table = proving.certify(device, each=min(60.0, seconds), most=seconds, progress=_progress)
        measured.payload |= {
            "rows": table.rows, "refused": table.refused, "seconds": round(time.monotonic() - began, 1),
            "wrong": sorted({f"{r['op']} {r['impl']} {r['dtype']}: {r['why']}" for r in table.rows if not r["passed"]}),
        }  # fmt: skip
        for refusal in table.refused:
            print(f"refused: {refusal['op']} {refusal['impl']}: {refusal['why']}", flush=True)


def _progress(done: int, total: int, what: str) -> None:
    if done == total or done % 20 == 1:
        print(f"certify: {done} of {total}, {what}", flush=True)


@contextlib.contextmanager
def _environment(**values: str) -> Any:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _attribute(of: Any, name: str, value: Any) -> Any:
    before = getattr(of, name)
    setattr(of, name, value)
    try:
        yield
    finally:
        setattr(of, name, before)


# -- schedules ---------------------------------------------------------------------------------------------------------


def runs(
    measured: Measured, pipe: Any, small: Any, only: str, options: dict[str, Any], until: float, dry: bool
) -> None:
    """Schedules from the shortest on; those with 8-bit attention after the others, against exact full steps."""
    took = 0.0  # seconds a computed step, in the run before
    attention = options["attention"]
    eight = attention if inexact(NAMES.get(attention, attention)) else "sageattention"
    exact = {**options, "attention": "auto" if attention == eight else attention}
    entries = [(name, entry, exact) for name, entry in e2e.SCHEDULES.items()]
    entries += [(name, entry, {**options, "attention": (eight, ANY)}) for name, entry in e2e.EIGHT_BIT.items()]
    for name, (steps, published, source), how in sorted(
        entries, key=lambda e: (e[0] in e2e.EIGHT_BIT, computed(e[1][0]))
    ):
        if only not in name or (dry and "B=" in name):
            continue
        if time.monotonic() + took * computed(steps) > until:
            measured.payload["not_run"][name] = "out of time"
            continue
        with measured.measuring(name), _standing_in(dry and how is not exact):
            full = _exact_full(measured, pipe, small, exact) if how is not exact else None
            try:
                handle = accelerated(pipe, steps, small, **how)
            except ValueError as error:  # the kernels are not installed
                measured.payload["not_run"][name] = str(error)
                continue
            with handle:
                times = e2e.run(pipe, measured.payload["clip"], e2e.STEPS)
                took = sum(times) / 1000 / computed(steps)
                measured.payload["runs"][name] = _figures(steps, times, handle, published, source, full)
                said = [n for n in handle.trace.notes if n.startswith("attention")]
                if how is not exact:
                    measured.payload["runs"][name] |= {"attention": said, "bound_by_default": BOUND}
                    print("\n".join(said), flush=True)


def _exact_full(measured: Measured, pipe: Any, small: Any, options: dict[str, Any]) -> dict[str, float]:
    """What a full step takes with exact attention: a run with another one cannot show it."""
    full = e2e.SCHEDULES["SRDiffusion delta=0.01"][0][:1] * 6
    with accelerated(pipe, full, small, **options):
        return e2e.by_action(full, e2e.run(pipe, measured.payload["clip"], len(full)))["Full"]


def _figures(
    steps: list[Any], times: list[float], handle: Any, published: float | None, source: str, full: dict | None
) -> dict[str, Any]:
    own = e2e.by_action(steps, times)["Full"]
    total = sum(times[1:]) + own["median"]  # the first step's capture and warm-up counted as a usual step
    full = full or own
    return {
        "timeline": handle.trace.timeline(), "full_step_ms": full, "seconds": round(sum(times) / 1000, 3),
        "seconds_without_capture": round(total / 1000, 3),
        "speedup": round(e2e.STEPS * full["median"] / total, 3), "published": published, "source": source,
    }  # fmt: skip


@contextlib.contextmanager
def _standing_in(wanted: bool) -> Any:
    """Where there are no kernels for 8-bit attention, a rehearsal has it emulated."""
    if not wanted:
        yield
        return
    import emulated_attention

    with emulated_attention.standing_in(emulated_attention.backend()):
        yield


def computed(steps: list[Any]) -> int:
    """How many steps run a model."""
    return sum(type(action).__name__ in ("Full", "Small") for action in steps)


def random_experts(pipe: Any, folder: Path, rank: int) -> Path:
    """The base itself as the semantic expert, LoRA and fresh layers of a real shape for the detail expert."""
    from vaccel.experts.files import save_experts
    from vaccel.experts.trees import Adapter, adapted, own_parameters
    from vaccel.models import find
    from vaccel.planning.trajectory import Trajectory

    family = find(pipe.transformer)
    adapter = Adapter(rank, 2 * rank, family.attention_targets, family.fresh)
    own = own_parameters(adapted(pipe.transformer, adapter), adapter)
    detail = {k: p + 1e-3 * torch.randn_like(p) for k, p in own.items()}
    return save_experts(
        folder, pipe.transformer, trajectory=Trajectory("flow", 17.0), boundary=0.7, detail=detail, adapter=adapter
    )


# -- experts -----------------------------------------------------------------------------------------------------------


def experts(measured: Measured, pipe: Any, allocated: Callable[[], int], dry: bool) -> None:
    """Eight steps by two experts over one model, in every mode."""
    with measured.measuring("full"):
        measured.payload["full_steps_ms"] = e2e.run(pipe, measured.payload["clip"], 3)
    modes: dict[str, dict[str, Any]] = {m: {"cuda_graphs": False} for m in ("lora", "merged")}
    if not dry:
        modes["lora, cuda graphs"] = {"cuda_graphs": True}
    with tempfile.TemporaryDirectory() as folder:
        saved = random_experts(pipe, Path(folder), 2 if dry else 128)
        for mode, options in modes.items():
            method = vaccel.DualExpert(saved, 8, mode == "merged")
            with measured.measuring(mode), vaccel.accelerate(pipe, method, **options) as handle:
                e2e.run(pipe, measured.payload["clip"], 8)  # warm-up and capture
                times = e2e.run(pipe, measured.payload["clip"], 8)
                measured.payload["modes"][mode] = {
                    "steps_ms": times, "first_detail_step_excess": times[4] / sorted(times[5:])[1] - 1,
                    "bytes": handle.expert_bytes, "allocated": allocated(), "refused": handle.refused,
                    "timeline": handle.trace.timeline(),
                }  # fmt: skip
