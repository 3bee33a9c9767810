"""Prompts x seeds x contenders: every contender's run is timed beside a run of the full model made just before it."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import metrics
from .contenders import Contender, calibrated

#: Measures a clip against its prompt: (clip, prompt) -> {name: 0 or 1}; the demo family has one.
Checker = Callable[[np.ndarray, str], dict[str, float]]


@dataclasses.dataclass
class Row:
    """One run of one contender, and the full run made just before it."""

    prompt: str
    seed: int
    contender: str
    seconds: float
    full_seconds: float
    forwards: dict[str, float]
    timeline: str
    psnr: float
    ssim: float
    lpips: float | None
    peak_bytes: int
    checks: dict[str, float]

    @property
    def speedup(self) -> float:
        return self.full_seconds / self.seconds


@dataclasses.dataclass
class Comparison:
    """All rows, and the clips [F, H, W, 3] in [0, 1] by (contender, prompt, seed); "full" is the full model."""

    contenders: list[Contender]
    rows: list[Row]
    clips: dict[tuple[str, str, int], np.ndarray]
    full_checks: dict[str, float]
    small: dict[str, Any] | None
    call: dict[str, Any]
    complete: bool = True

    def summary(self) -> list[dict[str, Any]]:
        """One entry a contender: medians and spreads over its rows, in the contenders' order."""
        out = []
        for contender in self.contenders:
            rows = [r for r in self.rows if r.contender == contender.label]
            if rows:
                out.append(_summarise(contender, rows))
        return out

    def to_json(self) -> dict[str, Any]:
        rows = [dataclasses.asdict(r) | {"speedup": r.speedup} for r in self.rows]
        return {
            "call": {k: v for k, v in self.call.items() if isinstance(v, (int, float, str, bool))},
            "complete": self.complete,
            "lpips": metrics.lpips_missing() or "measured",
            "full": {"checks": self.full_checks},
            "small_alone": self.small,
            "summary": self.summary(),
            "rows": _finite(rows),
        }


def _summarise(contender: Contender, rows: list[Row]) -> dict[str, Any]:
    def quartiles(values: list[float]) -> list[float]:
        return [float(q) for q in np.quantile(values, [0.25, 0.5, 0.75])]

    finite = [min(r.psnr, 100.0) for r in rows]  # equal clips count as 100 dB
    low, middle, high = quartiles([r.speedup for r in rows])
    checks = {k: statistics.fmean(r.checks[k] for r in rows) for k in rows[0].checks}
    return {
        "contender": contender.label,
        "group": contender.group,
        "kind": contender.kind,
        "method": contender.method.to_json() if contender.method is not None else None,
        "runs": len(rows),
        "speedup": middle,
        "speedup_quartiles": [low, high],
        "seconds": statistics.median(r.seconds for r in rows),
        "forwards": {k: statistics.fmean(r.forwards[k] for r in rows) for k in rows[0].forwards},
        "psnr": statistics.fmean(finite),
        "psnr_std": statistics.pstdev(finite),
        "psnr_worst": min(finite),
        "ssim": statistics.fmean(r.ssim for r in rows),
        "lpips": statistics.fmean(r.lpips for r in rows) if rows[0].lpips is not None else None,
        "peak_bytes": max(r.peak_bytes for r in rows),
        "checks": checks,
        "timeline": rows[0].timeline,
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity: equal clips have PSNR "inf"."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


class _Counter:
    """Counts real forwards of a transformer: the last block's last linear layer runs in those and in no others."""

    def __init__(self, transformer: nn.Module):
        blocks = next(m for _, m in transformer.named_children() if isinstance(m, nn.ModuleList))
        layer = [m for m in blocks[-1].modules() if isinstance(m, nn.Linear)][-1]
        self.count = 0
        self._handle = layer.register_forward_pre_hook(self._seen)

    def _seen(self, module: nn.Module, args: tuple) -> None:
        self.count += 1

    def close(self) -> int:
        self._handle.remove()
        return self.count


def _peak(reset: bool) -> int:
    """Peak bytes since the last reset: of the GPU, or of the process where there is none (0 where unknown)."""
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return 0


def _frames(pipe: Any, prompt: str, seed: int, call: dict[str, Any]) -> tuple[np.ndarray, float]:
    """One clip and the seconds it took."""
    generator = torch.Generator().manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    frames = pipe(prompt, generator=generator, output_type="np", **call).frames
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.asarray(frames[0], dtype=np.float32), time.perf_counter() - start


def _run(
    pipe: Any, small: nn.Module | None, contender: Contender, prompt: str, seed: int, call: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """One contender's clip, time, forwards and memory."""
    call = {**call, "num_inference_steps": contender.num_steps or call["num_inference_steps"]}
    _peak(reset=True)
    with contender.applied(pipe, small) as handle:
        counter = _Counter(pipe.transformer) if handle is None else None
        try:
            clip, seconds = _frames(pipe, prompt, seed, call)
        finally:
            counted = counter.close() if counter else 0
        forwards = handle.trace.calls if handle is not None else {"large": counted, "small": 0}
        timeline = handle.trace.timeline() if handle is not None else ""
    return clip, {"seconds": seconds, "forwards": forwards, "timeline": timeline, "peak_bytes": _peak(reset=False)}


def compare(
    pipe: Any,
    contenders: list[Contender],
    prompts: list[str],
    *,
    small: nn.Module | None = None,
    seeds: list[int] = (0,),
    call: dict[str, Any],
    checker: Checker | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    log: Path | None = None,
) -> Comparison:
    """Runs every contender on every prompt and seed.

    Args:
        call: arguments of the pipeline's call; ``num_inference_steps`` is the full model's.
        checker: scores a clip against its prompt; the demo family has one.
        progress: called with (runs done, their total, the next run).
        log: a file that each run is appended to as a JSON line, so that an interrupted comparison keeps its results.

    Ctrl-C ends it early with what is done (``complete`` is False).  Raises ``ValueError`` for a contender that needs
    a small model when there is none, before anything runs.
    """
    call = {"num_inference_steps": 50, **call}
    if small is None and (needy := [c.label for c in contenders if c.needs_small]):
        raise ValueError(f"{needy[0]} needs a small model: pass small=...")
    comparison = Comparison(contenders, [], {}, {}, None, call)
    jobs = [(p, s) for p in prompts for s in seeds]
    total, done, checks = len(jobs) * (len(contenders) + 1), 0, []
    try:
        progress(0, total, "warm-up")
        _frames(pipe, prompts[0], seeds[0], {**call, "num_inference_steps": 2})
        contenders = comparison.contenders = calibrated(contenders, pipe, prompts[0], call)
        for prompt, seed in jobs:
            progress(done, total, f"full model: {prompt}")
            reference, _ = _frames(pipe, prompt, seed, call)
            comparison.clips["full", prompt, seed] = reference
            checks.append(checker(reference, prompt) if checker else {})
            done += 1
            for contender in contenders:
                progress(done, total, f"{contender.label}: {prompt}")
                _, full_seconds = _frames(pipe, prompt, seed, call)
                clip, cost = _run(pipe, small, contender, prompt, seed, call)
                fidelity = {f: getattr(metrics, f)(reference, clip) for f in ("psnr", "ssim", "lpips")}
                scores = checker(clip, prompt) if checker else {}
                row = Row(prompt, seed, contender.label, full_seconds=full_seconds, checks=scores, **cost, **fidelity)
                comparison.rows.append(row)
                comparison.clips[contender.label, prompt, seed] = clip
                done += 1
                if log is not None:
                    with log.open("a") as f:
                        f.write(json.dumps(_finite(dataclasses.asdict(row))) + "\n")
        if small is not None:
            progress(done, total, "the small model alone")
            comparison.small = _small_alone(pipe, small, jobs, call, comparison, checker)
    except KeyboardInterrupt:
        comparison.complete = False
    comparison.full_checks = _mean(checks)
    return comparison


def _small_alone(
    pipe: Any, small: nn.Module, jobs: list, call: dict[str, Any], comparison: Comparison, checker: Checker | None
) -> dict[str, Any]:
    """The small model in the large one's place: its fidelity and speedup."""
    large = pipe.transformer
    seconds, fidelity, checks = [], [], []
    for prompt, seed in jobs:
        _, full = _frames(pipe, prompt, seed, call)
        pipe.transformer = small
        try:
            clip, spent = _frames(pipe, prompt, seed, call)
        finally:
            pipe.transformer = large
        comparison.clips["small", prompt, seed] = clip
        seconds.append(full / spent)
        fidelity.append(metrics.psnr(comparison.clips["full", prompt, seed], clip))
        checks.append(checker(clip, prompt) if checker else {})
    return {"speedup": statistics.median(seconds), "psnr": statistics.fmean(fidelity), "checks": _mean(checks)}


def _mean(checks: list[dict[str, float]]) -> dict[str, float]:
    return {k: statistics.fmean(c[k] for c in checks) for k in (checks[0] if checks else {})}
