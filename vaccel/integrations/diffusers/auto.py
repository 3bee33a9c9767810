"""What ``Auto`` needs of a pipeline: its steps' times, what is known of it, and a place for what is learnt."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...actions import Full
from ...engine.trace import Trace
from ...methods import Auto, Forecast, Method, Recording
from ...methods.auto import Candidate
from ...methods.recording import Recorded
from ...models import Family, fingerprints
from ...planning import artifacts
from ...planning.calibration import added, calibration, sample_of
from ...planning.flow import Flow

_now = time.perf_counter
#: Runs whose times count: the latest.
RECENT = 5


@dataclasses.dataclass
class Times:
    """Seconds, medians of the latest runs: of a computed step, of a skipped one, of a call beside its steps."""

    full: float
    skipped: float
    beside: float

    def run(self, computed: int, steps: int) -> float:
        """Of a call that computes so many of its steps."""
        return self.beside + computed * self.full + (steps - computed) * self.skipped

    def speedup(self, computed: int, steps: int) -> float:
        return self.run(steps, steps) / self.run(computed, steps)


class Stopwatch:
    """Times of one pipeline's calls: when they begin and end, and when each step begins."""

    def __init__(self, pipe: Any):
        self._marks: list[Any] = []
        self._entered: float | None = None
        self.measured: list[tuple[list[float], float]] = []  # of a call: its steps, and the rest
        # The first and the last thing that a pipeline's call does, as attributes of this one object.
        self._wrapped = []
        for name, told in (("check_inputs", self._enter), ("maybe_free_model_hooks", self._leave)):
            own = getattr(pipe, name, None)
            if own is not None and name not in vars(pipe):
                setattr(pipe, name, _telling(own, told))
                self._wrapped.append(name)

    def remove(self, pipe: Any) -> None:
        for name in self._wrapped:
            vars(pipe).pop(name, None)

    def _enter(self) -> None:
        self._entered, self._marks = _now(), []

    def mark(self, device: torch.device) -> None:
        """A step begins, or the last is over."""
        if device.type != "cuda":
            self._marks.append(_now())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def _leave(self) -> None:
        if len(self._marks) < 2 or self._entered is None:
            return
        if isinstance(self._marks[0], float):
            steps = [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]
        else:
            self._marks[-1].synchronize()
            steps = [a.elapsed_time(b) / 1e3 for a, b in zip(self._marks, self._marks[1:], strict=False)]
        beside = _now() - self._entered - sum(steps)
        self.measured = [*self.measured[1 - RECENT :], (steps, max(beside, 0.0))]
        self._entered, self._marks = None, []


def _telling(own: Callable[..., Any], told: Callable[[], None]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        told()
        return own(*args, **kwargs)

    return wrapper


class Pilot:
    """Chooses a method for every run of a pipeline that is accelerated with ``Auto``, and learns."""

    def __init__(self, auto: Auto, watch: Stopwatch, transformer: torch.nn.Module, family: Family):
        self.auto, self.transformer, self.family = auto, transformer, family
        self.watch = watch
        self._runs: list[Trace] = []
        self._candidates: tuple[Any, Any, list[Candidate]] | None = None  # behind what they were made of
        self._times: dict[str, list[float]] = {"full": [], "skipped": [], "beside": []}
        self._file: Path | None = None

    def choose(self, pipe: Any, num_steps: int, flow: Flow | None, guidance: float) -> tuple[Method, list[str]]:
        """The method of the run that begins, and what its trace is to say.

        Raises ``ValueError`` where nothing is known of this pipeline and nothing is to be learnt.
        """
        self.take_times()
        self._file = self._place(num_steps, flow, guidance)
        learnt = self._learnt()
        known = [*self.auto.artifacts, *([str(self._file)] if learnt else [])]
        taught = len(learnt["samples"]) if learnt else 0
        if taught < self.auto.learn:
            return Recording(), [f"Auto: learning from this run, computed in full ({taught + 1} of {self.auto.learn})"]
        candidates = self._candidates_of(pipe, known, num_steps)
        if not candidates:
            raise ValueError(
                f"Auto knows nothing of this {type(self.transformer).__name__} at {num_steps} steps: pass learn=1 to "
                "learn from the first run, or artifacts=(...) that `vaccel calibrate forecast` makes"
            )
        return self._chosen(candidates, num_steps)

    def _candidates_of(self, pipe: Any, paths: list[str], num_steps: int) -> list[Candidate]:
        """Those that fit this pipeline; worked out once for every state of the files."""
        files = [(path, Path(path).stat().st_mtime_ns) for path in paths], num_steps
        kept = self._candidates
        if kept is None or kept[0] is not pipe.scheduler or kept[1] != files:
            found = self.auto.candidates(paths, num_steps)
            fitting = [c for c in found if self.auto.allow_mismatch or self._fits(pipe, c.method)]
            self._candidates = kept = pipe.scheduler, files, fitting
        return kept[2]

    def _chosen(self, candidates: list[Candidate], steps: int) -> tuple[Method, list[str]]:
        times = self._known_times(candidates[0].method)
        if self.auto.speedup is not None:
            chosen = min(candidates, key=lambda c: abs(times.speedup(c.budget, steps) / self.auto.speedup - 1))
        else:
            chosen = self.auto.reaching(candidates) or candidates[-1]
        said = f"predicted error of the latents {chosen.error:.3g}"
        if chosen.psnr is not None:
            said += f", PSNR {chosen.psnr[0]:.1f} dB (five prompts in six above {chosen.psnr[1]:.1f})"
        wanted = f"{self.auto.speedup:g}x" if self.auto.speedup is not None else f"{self.auto.psnr:g} dB"
        name, speed = type(chosen.method).__name__, times.speedup(chosen.budget, steps)
        note = f"Auto: {wanted} asked for: {name}, {chosen.budget} of {steps} steps, {speed:.2f}x expected; {said}"
        return chosen.method, [note]

    def _fits(self, pipe: Any, method: Method) -> bool:
        model, solver = fingerprints.differences(method.fitted, self.transformer, pipe.scheduler)
        return not model and (method.any_solver or not solver)

    # -- times -------------------------------------------------------------------------------------------------------

    def began(self, trace: Trace) -> None:
        self._runs.append(trace)

    def take_times(self) -> None:
        """What the calls since the last choice took, by what their steps did."""
        measured = self.watch.measured
        for trace, (steps, beside) in zip(self._runs[-len(measured) :], measured, strict=False):
            if not trace.finished or len(steps) != len(trace.steps):
                continue
            full = [s for s, record in zip(steps, trace.steps, strict=True) if isinstance(record.action, Full)]
            skipped = [s for s, record in zip(steps, trace.steps, strict=True) if not isinstance(record.action, Full)]
            for name, values in (("full", full), ("skipped", skipped), ("beside", [beside])):
                if values:
                    self._times[name] = [*self._times[name][1 - RECENT :], statistics.median(values)]
        self._runs, self.watch.measured = [], []
        if self._file is not None and self._times["skipped"]:
            with contextlib.suppress(OSError):  # a cache that cannot be written to costs only what it would save
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._times_file.write_text(json.dumps(self._times))

    @property
    def _times_file(self) -> Path:
        return self._file.with_suffix(f".{_device(self.transformer)}.times.json")

    def _known_times(self, method: Method) -> Times:
        """Measured here; in an earlier process; when it was calibrated; or else by count alone."""
        found = self._times
        if not found["full"] and self._times_file.is_file():
            with contextlib.suppress(ValueError, OSError):
                found = {**found, **json.loads(self._times_file.read_text())}
        if found["full"]:
            medians = {name: statistics.median(values) if values else 0.0 for name, values in found.items()}
            return Times(**medians)
        if isinstance(method, Forecast) and "times" in calibration(method.artifact).data:
            return Times(**calibration(method.artifact).data["times"])
        return Times(1.0, 0.0, 0.0)

    # -- what is learnt ----------------------------------------------------------------------------------------------

    def _place(self, num_steps: int, flow: Flow | None, guidance: float) -> Path:
        """Where what is learnt of this model at these levels and this guidance scale is kept."""
        model = fingerprints.of_model(self.transformer)
        last = [p for p in self.transformer.parameters() if p.device.type != "meta"][-1:]
        weights = [p.detach().flatten()[:256].float().cpu().numpy().tobytes().hex() for p in last]
        levels = [round(level, 4) for level in flow.levels] if flow is not None else num_steps
        text = json.dumps([model, weights, levels, round(guidance, 3)])
        folder = Path(self.auto.folder) if self.auto.folder is not None else _cache()
        return folder / f"forecast-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def _learnt(self) -> dict[str, Any] | None:
        """What earlier runs taught, if any did; a file that is none any more is learnt anew."""
        if not self._file.is_file():
            return None
        try:
            return calibration(self._file).data
        except ValueError as error:
            warnings.warn(f"vaccel: {error}; it counts for nothing", stacklevel=2)
            return None

    def learn(self, pipe: Any, trace: Trace) -> None:
        """Adds a recorded run to what is known, in the cache folder."""
        recorded: Recorded = trace.delivered
        trace.delivered = None
        try:
            _, data = sample_of(*recorded, self.family.channel_axis, bands=1)
        except ValueError as error:
            warnings.warn(f"vaccel: {error}", stacklevel=2)
            return
        products = [data.pop("products")]
        samples: dict[str, Any] = {}
        if before := self._learnt():
            samples, products = dict(before["samples"]), [before["products"], *products]
        samples[f"run-{len(samples)}"] = {**data, "forwards": trace.calls["large"]}
        header = fingerprints.header(Forecast.id, pipe, {}, num_steps=recorded.flow.num_steps, bands=1)
        artifacts.write(self._file, {**header, "samples": samples, "products": added(products)})
        trace.notes.append(f"Auto: what this run taught is kept in {self._file}")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaccel"


def _device(module: torch.nn.Module) -> str:
    device = next(module.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu{torch.get_num_threads()}"
    return "".join(c if c.isalnum() else "-" for c in name)
