"""Prompts x seeds x contenders: every contender's run is timed beside a run of the full model made just before it."""

from __future__ import annotations

import dataclasses
import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models.denoisers import denoisers_of, main_denoiser
from ..models.fingerprints import header, identity
from .clips import first_of, is_sound, rate_of
from .comparison import Comparison, Failure, Row, finite, mean, row_of
from .contenders import FULL, Contender, calibrated
from .fidelity import EQUAL, YARDSTICKS, chosen, decibels
from .log import Key, Log, is_reference

#: Measures a clip against its prompt: (clip, prompt) -> {name: 0 or 1}; the demo family has one.
Checker = Callable[[np.ndarray, str], dict[str, float]]


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
    """One clip [F, H, W, 3] or one sound [channels, samples], and the seconds it took."""
    generator = torch.Generator().manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    output = pipe(prompt, **{**call, "generator": generator, "output_type": "np"})
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return first_of(output), seconds


def _run(
    pipe: Any, small: nn.Module | None, contender: Contender, prompt: str, seed: int, call: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """One contender's clip, time, forwards and memory."""
    call = {**call, "num_inference_steps": contender.num_steps or call["num_inference_steps"]}
    _peak(reset=True)
    with contender.applied(pipe, small) as handle:
        counter = _Counter(main_denoiser(pipe)) if handle is None else None
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
    restart: bool = False,
    metrics: Sequence[str] | None = None,
    fps: float = 12,
    brief: bool = False,
) -> Comparison:
    """Runs every contender on every prompt and seed.

    Every contender is tried for two steps first: where one cannot run, nothing is measured, and ``failures`` says why.
    One whose run fails later is noted there, and the others go on.

    Args:
        call: arguments of the pipeline's call; ``num_inference_steps`` is the full model's.
        checker: scores a clip against its prompt; the demo family has one.
        progress: called with (runs done, their total, the next run).
        log: a file that each run is appended to as a JSON line, clips in a folder "clips" beside it.  The same
            comparison goes on from it; those of other weights, schedulers or calls are set aside.
        restart: measure everything anew.
        metrics: names of what is measured beside PSNR (of sounds SNR), by default all that can be measured here
            (``vaccel.evaluate.fidelity.METRICS``); between the timed runs, never in them.
        fps: frames a second that clips are seen with.
        brief: the full model runs once a prompt and seed, and all contenders are timed beside that run: quicker, and
            the times say less.  Progress is then told in steps.

    Pipelines of sound (Stable Audio, ACE-Step, ...) are compared by SNR.

    Ctrl-C ends it early with what is done (``complete`` is False).  Raises ``ValueError`` for a contender that needs
    a small model when there is none, and for metrics that are unknown or cannot be measured here, before anything runs.
    """
    call = {"num_inference_steps": 50, **call}
    if small is None and (needy := [c.label for c in contenders if c.needs_small]):
        raise ValueError(f"{needy[0]} needs a small model: pass small=...")
    jobs = list(dict.fromkeys((p, s) for p in prompts for s in seeds))
    contenders = list({c.label: c for c in contenders}.values())
    comparison = Comparison(contenders, [], {}, {}, None, call, metrics=chosen(metrics), fps=fps, rate=rate_of(pipe))
    work = _Work(pipe, small, comparison, jobs, checker, progress, log, restart, brief)
    try:
        work.run()
    except KeyboardInterrupt as error:
        work.comparison.complete, work.comparison.interrupted = False, error
    return work.finished()


class _Work:
    """One comparison as it proceeds."""

    def __init__(
        self, pipe: Any, small: nn.Module | None, comparison: Comparison, jobs: list[tuple[str, int]],
        checker: Checker | None, progress: Callable[[int, int, str], None], log: Path | None, restart: bool,
        brief: bool,
    ):  # fmt: skip
        self.pipe, self.small, self.comparison, self.jobs = pipe, small, comparison, jobs
        self.checker, self.progress, self.brief = checker, progress, brief
        self.total, self.done = len(jobs) * (len(comparison.contenders) + 1), 0
        self.stepwise = brief and "callback_on_step_end" in inspect.signature(pipe.__call__).parameters
        self.log = Log(log, _header(pipe, small, comparison.call), restart=restart) if log is not None else None
        held = self.log.rows if self.log is not None else {}
        self.rows = {key: row for key, row in held.items() if row_of(row) is not None or is_reference(key)}

    def run(self) -> None:
        comparison, (prompt, seed) = self.comparison, self.jobs[0]
        missing = [c for c in comparison.contenders if any(self._key(c, p, s) not in self.rows for p, s in self.jobs)]
        if missing:
            self._say("trying every contender for two steps")
            if not self._try(missing):
                comparison.complete = False
                return
            self._say("warm-up")
            _frames(self.pipe, prompt, seed, {**comparison.call, "num_inference_steps": 2})
            fitted = {c.label: c for c in calibrated(comparison.contenders, self.pipe, prompt, comparison.call)}
            comparison.contenders = list(fitted.values())
        for prompt, seed in self.jobs:
            self._job(prompt, seed)
        if self.small is not None:
            self._say("the small model alone")
            self._small()

    def finished(self) -> Comparison:
        self.comparison.full_checks = mean([row["checks"] for row in self.comparison.full.values()])
        if self.log is not None:
            self.comparison.notes += self.log.notes
            self.comparison.other_rows = self.log.others
            self.comparison.complete &= not self.log.broken
        return self.comparison

    # -- before anything is measured ---------------------------------------------------------------------------------

    def _try(self, contenders: list[Contender]) -> bool:
        """Whether each contender makes two steps."""
        if "callback_on_step_end" not in inspect.signature(self.pipe.__call__).parameters:
            return True
        for contender in (c for c in contenders if not c.needs_ratios):
            tried = (f"tried {contender.key}", "", 0)
            if tried in self.rows:  # by the command that was stopped
                continue
            steps = contender.num_steps or self.comparison.call["num_inference_steps"]
            call = {**self.comparison.call, "num_inference_steps": steps, "callback_on_step_end": _stop}
            try:
                with contender.applied(self.pipe, self.small):
                    _frames(self.pipe, *self.jobs[0], call)
            except _TriedError:
                pass
            except Exception as error:
                self.comparison.failures.append(Failure(contender.label, _words(error)))
                continue
            if self.log is not None:
                self.log.append(tried, {})
        return not self.comparison.failures

    def _say(self, what: str, steps: int = 0) -> None:
        """Progress: runs, or in a brief comparison their steps, of which the run in progress has made so many."""
        each = self.comparison.call["num_inference_steps"] if self.brief else 1
        self.progress(min(self.done * each + steps, self.total * each), self.total * each, what)

    def _watched(self, what: str) -> dict[str, Any]:
        """The call of a run, whose steps are told in a brief comparison."""
        call = self.comparison.call
        if not self.stepwise:
            return call

        def told(pipe: Any, step: int, *args: Any) -> dict[str, Any]:
            self._say(what, min(step + 1, call["num_inference_steps"]))
            return {}

        return {**call, "callback_on_step_end": told}

    # -- runs --------------------------------------------------------------------------------------------------------

    def _key(self, contender: Contender, prompt: str, seed: int) -> Key:
        return (contender.key, prompt, seed)

    def _job(self, prompt: str, seed: int) -> None:
        """Every contender on one prompt and seed."""
        comparison = self.comparison
        missing = [c for c in comparison.contenders if self._key(c, prompt, seed) not in self.rows]
        reference = self._reference(prompt, seed, exact=bool(missing))
        for contender in comparison.contenders:
            self._say(f"{contender.label}: {prompt}")
            if contender not in missing:
                self._again(contender, prompt, seed)
            elif reference is not None:
                self._measure(contender, prompt, seed, reference)
            self.done += 1
        if self.log is not None:
            self.log.done("full", prompt, seed)

    def _reference(self, prompt: str, seed: int, exact: bool) -> np.ndarray | None:
        """The full model's clip; the one that was kept, where nothing more is to be compared with it."""
        self._say(f"full model: {prompt}")
        key = ("full", prompt, seed)
        kept = self.log.clip("full", prompt, seed, exact=exact) if self.log is not None else None
        timed = exact and self.brief  # now, whenever its clip was made: what is measured next is timed beside it
        if kept is None or key not in self.rows or timed:
            try:
                kept, cost = self._full(prompt, seed)
            except Exception as error:
                self._failed("full model", prompt, seed, error)
                self.done += 1
                return None
            scores = self.checker(kept, prompt) if self.checker else {}
            self._keep("full", prompt, seed, kept, {"checks": scores, **cost})
            if self.log is not None and exact:
                self.log.keep("full", prompt, seed, kept, exact=True)
        self.done += 1
        self.comparison.full[prompt, seed] = self.rows[key]
        self.comparison.clips["full", prompt, seed] = kept
        return kept

    def _full(self, prompt: str, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """A run of the full model, and in a brief comparison its cost."""
        if not self.brief:
            return _frames(self.pipe, prompt, seed, self.comparison.call)[0], {}
        clip, cost = _run(self.pipe, None, FULL, prompt, seed, self._watched(f"full model: {prompt}"))
        return clip, {name: cost[name] for name in ("seconds", "forwards")}

    def _measure(self, contender: Contender, prompt: str, seed: int, reference: np.ndarray) -> None:
        call = self._watched(f"{contender.label}: {prompt}")
        try:
            if self.brief:
                full_seconds = self.comparison.full[prompt, seed]["seconds"]
            else:
                _, full_seconds = _frames(self.pipe, prompt, seed, call)
            clip, cost = _run(self.pipe, self.small, contender, prompt, seed, call)
            if clip.shape != reference.shape:
                raise ValueError(f"it made {list(clip.shape)}, the full model {list(reference.shape)}")
        except Exception as error:
            self._failed(contender.label, prompt, seed, error)
            return
        fidelity = self._fidelity(reference, clip)
        scores = self.checker(clip, prompt) if self.checker else {}
        row = Row(prompt, seed, contender.label, full_seconds=full_seconds, checks=scores, **cost, **fidelity)
        self.comparison.rows.append(row)
        self.comparison.clips[contender.label, prompt, seed] = clip
        self._keep(contender.key, prompt, seed, clip, finite(dataclasses.asdict(row)))

    def _fidelity(self, reference: np.ndarray, output: np.ndarray) -> dict[str, float | None]:
        """Every metric; None for what does not apply, and for what fails, which is noted."""
        found: dict[str, float | None] = {"psnr": None, "ssim": None, "lpips": None}
        for metric in self.comparison.metrics:
            if metric.sound != is_sound(reference):
                continue
            try:
                found[metric.name] = metric.measure(reference, output, self.comparison.fps)
            except Exception as error:
                if metric.name in YARDSTICKS:
                    raise
                said = f"{metric.head} could not be measured: {_words(error)}"
                self.comparison.notes += [said] if said not in self.comparison.notes else []
        return found

    def _again(self, contender: Contender, prompt: str, seed: int) -> None:
        """A run that was measured before."""
        self.comparison.rows.append(row_of(self.rows[self._key(contender, prompt, seed)]))
        clip = self.log.clip(contender.key, prompt, seed) if self.log is not None else None
        if clip is not None:
            self.comparison.clips[contender.label, prompt, seed] = clip

    def _keep(self, name: str, prompt: str, seed: int, clip: np.ndarray, row: dict[str, Any]) -> None:
        self.rows[name, prompt, seed] = row
        if self.log is not None:
            self.log.keep(name, prompt, seed, clip)
            self.log.append((name, prompt, seed), row)

    def _failed(self, label: str, prompt: str, seed: int, error: Exception) -> None:
        self.comparison.failures.append(Failure(label, _words(error), prompt, seed))
        self.comparison.complete = False
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _small(self) -> None:
        """The small model in the large one's place."""
        rows = []
        for prompt, seed in self.jobs:
            key = ("small", prompt, seed)
            if key not in self.rows:
                reference = self.comparison.clips.get(("full", prompt, seed))
                if reference is None:
                    continue
                try:
                    clip, row = _small_alone(self.pipe, self.small, prompt, seed, self.comparison.call, reference)
                except Exception as error:
                    self._failed("the small model alone", prompt, seed, error)
                    continue
                row["checks"] = self.checker(clip, prompt) if self.checker else {}
                self._keep(*key, clip, row)
                self.comparison.clips[key] = clip
            elif self.log is not None and (clip := self.log.clip(*key)) is not None:
                self.comparison.clips[key] = clip
            rows.append(self.rows[key])
        if rows:
            name = "snr" if "snr" in rows[0] else "psnr"
            self.comparison.small = {
                "speedup": statistics.median(row["speedup"] for row in rows),
                name: statistics.fmean(min(float(row[name]), EQUAL) for row in rows),
                "checks": mean([row["checks"] for row in rows]),
            }


class _TriedError(Exception):
    """The first steps of a contender that is tried are over."""


def _stop(pipe: Any, step: int, *args: Any) -> dict[str, Any]:
    """Ends a trial after its second step: what is reused was then computed and used."""
    if step > 0:
        raise _TriedError
    return {}


def _words(error: Exception) -> str:
    text = str(error)
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def _header(pipe: Any, small: nn.Module | None, call: dict[str, Any]) -> dict[str, Any]:
    """What all rows of a comparison share."""
    made = header("", pipe, call)
    found = {name: made[name] for name in ("model", "weights", "scheduler", "call")}
    found["small"] = identity({"small": small})["weights"] if small is not None else None
    return found


def _small_alone(
    pipe: Any, small: nn.Module, prompt: str, seed: int, call: dict[str, Any], reference: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """The small model in the large one's place: its clip, its speedup and its fidelity."""
    name, large = next(iter(denoisers_of(pipe).items()))
    _, full = _frames(pipe, prompt, seed, call)
    setattr(pipe, name, small)
    try:
        clip, spent = _frames(pipe, prompt, seed, call)
    finally:
        setattr(pipe, name, large)
    name, value = decibels(reference, clip)
    return clip, finite({"speedup": full / spent, name: value})
