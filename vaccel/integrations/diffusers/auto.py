"""What ``Auto`` needs of a pipeline: its steps' times, what is known of it, and a place for what is learnt."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import secrets
import statistics
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...actions import Full
from ...engine.trace import Trace
from ...methods import Auto, Forecast, Method, Recording
from ...methods.auto import FEW, Candidate
from ...methods.recording import Recorded
from ...models import Family, fingerprints
from ...models.denoisers import denoisers_of
from ...models.weights_digest import digest_of
from ...planning import artifacts, files
from ...planning.calibration import calibration, sample_of
from ...planning.flow import Flow
from ...planning.joining import joined

#: Runs whose times count: the latest.
RECENT = 5
#: A speed counts as reached from this share of it on.
NEAR = 0.9


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


def durations(marks: list[Any]) -> list[float]:
    """Seconds between marks, which are times or CUDA events."""
    if isinstance(marks[0], float):
        return [b - a for a, b in itertools.pairwise(marks)]
    marks[-1].synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]


class Chosen(NamedTuple):
    """What a run is to be: its method, what its trace is to say and to expect, the file of what is learnt of it, None
    where another process keeps that."""

    method: Method
    note: str
    file: Path | None
    predicted: dict[str, float]


class Choice(NamedTuple):
    """A run's method, what its trace is to say of it ("" for nothing), the file of what is learnt of such runs, and the
    candidate that was chosen; None where nothing was predicted."""

    method: Method
    note: str = ""
    file: Path | None = None
    candidate: Candidate | None = None

    @property
    def predicted(self) -> dict[str, float]:
        """What the trace is to expect: the latents' error (rms), PSNR in dB and what 19 runs in 20 reach of it."""
        if self.candidate is None:
            return {}
        psnr = dict(zip(("psnr", "psnr_low"), self.candidate.psnr or (), strict=False))
        return {"error": self.candidate.error, **psnr}

    def taken(self) -> Chosen:
        return Chosen(self.method, self.note, self.file, self.predicted)


class Pilot:
    """Chooses a method for every run of a pipeline that is accelerated with ``Auto``, and learns."""

    def __init__(self, auto: Auto, family: Family):
        self.auto, self.family = auto, family
        self._lock = threading.RLock()
        self._candidates: tuple[Any, Any, list[Candidate]] | None = None  # behind what they were made of
        self._times: dict[str, list[float]] = {"full": [], "skipped": [], "beside": []}
        self._file: Path | None = None
        self._spare: tempfile.TemporaryDirectory | None = None  # where the folder cannot be written
        self._modules: list[torch.nn.Module] = []

    def choose(
        self, pipe: Any, modules: list[torch.nn.Module], num_steps: int, flow: Flow | None, scales: list[float],
        bound: list[Any],
    ) -> Choice:  # fmt: skip
        """The method of the run that begins.

        Args:
            modules: the pipeline's transformers.
            scales: the guidance scale of each.
            bound: what else of the call it is bound to (``guidance.bound``).

        Raises ``ValueError`` for artifacts none of which is of this pipeline.
        """
        with self._lock:
            self._modules = modules
            self._file = file = self._place(modules, num_steps, flow, scales, bound)
            learnt = self._learnt(file)
            known = [*self.auto.artifacts, *([str(file)] if learnt else [])]
            recorded = len(learnt["samples"]) if learnt else 0
            if recorded < self.auto.learn:
                said = f"Auto: learning from this run, computed in full ({recorded + 1} of {self.auto.learn})"
                return Choice(Recording(), said, file)
            candidates = self._candidates_of(pipe, known, num_steps, flow)
            if candidates and not known and num_steps <= FEW:
                said = f"Auto: of {num_steps} steps nothing is known that is safe to skip: all are computed"
                return Choice(candidates[-1].method, said, file)
            if not candidates and not known:
                said = "Auto: nothing is known that is safe to skip of runs at these noise levels: all are computed"
                return Choice(Forecast(tuple(range(num_steps)), num_steps), said, file)
            if not candidates:
                raise ValueError(
                    f"Auto knows nothing of this {type(modules[0]).__name__} at {num_steps} steps: pass learn=1 to "
                    "learn from the first run, or artifacts=(...) that `vaccel calibrate forecast` makes"
                )
            chosen, said = self._chosen(candidates, num_steps)
            return Choice(chosen.method, said, file, chosen)

    def _candidates_of(self, pipe: Any, paths: list[str], num_steps: int, flow: Flow | None) -> list[Candidate]:
        """Those that fit this pipeline; worked out once for every state of the files."""
        files = [(path, Path(path).stat().st_mtime_ns) for path in paths], num_steps, str(self._file)
        kept = self._candidates
        if kept is None or kept[0] is not pipe.scheduler or kept[1] != files:
            found = self.auto.candidates(paths, num_steps, flow)
            sources = {(c.fitted, c.any_solver) for c in found}  # few: an artifact has a candidate for every budget
            fits = {source: self.auto.allow_mismatch or self._fits(pipe, *source) for source in sources}
            fitting = [c for c in found if fits[c.fitted, c.any_solver]]
            if not paths:
                fitting = self.auto.uncalibrated(num_steps, flow)
            self._candidates = kept = pipe.scheduler, files, fitting
        return kept[2]

    def _chosen(self, candidates: list[Candidate], steps: int) -> tuple[Candidate, str]:
        auto, times, refused = self.auto, self._known_times(candidates[0].method), ""
        good = auto.reaching(candidates) or candidates[-1]
        if auto.psnr is not None and (good.psnr is None or good.psnr[1] < auto.psnr):
            refused = f"{auto.psnr:g} dB cannot be promised"
        if auto.speedup is not None:
            chosen, refused = self._fast(candidates, times, steps)
            if auto.psnr is not None and good.budget > chosen.budget:
                fastest = times.speedup(good.budget, steps)
                refused = f"{auto.speedup:g}x cannot be had with {auto.psnr:g} dB, which allow {fastest:.2f}x"
                chosen = good
        else:
            chosen = good
        said = f"predicted error of the latents {chosen.error:.3g}"
        if chosen.psnr is not None:
            said += f", PSNR {chosen.psnr[0]:.1f} dB (19 runs in 20 above {chosen.psnr[1]:.1f})"
            said += ", as other models': this one's was not measured" if chosen.fidelity.of_others else ""
            said += "".join(f", {name} {value:.3g}" for name, value in chosen.metrics.items())
        wanted = [f"{auto.speedup:g}x"] if auto.speedup is not None else []
        wanted += [f"{auto.psnr:g} dB"] if auto.psnr is not None else []
        name, speed = type(chosen.method).__name__, times.speedup(chosen.budget, steps)
        note = (
            f"Auto: {' and '.join(wanted)} asked for: {name}, {chosen.budget} of {steps} steps, {speed:.2f}x expected; "
            f"{said}{'; ' if refused else ''}{refused}"
        )
        return chosen, note

    def _fast(self, candidates: list[Candidate], times: Times, steps: int) -> tuple[Candidate, str]:
        """The candidate nearest to the speed asked for, and what is to be said where none comes near it.

        Where even the fewest computed steps are too slow, since the rest of a call takes its time too, the last of them
        hardly make it faster and cost most of the fidelity: then those are kept that come within ``NEAR`` of it.
        """
        speeds = [times.speedup(c.budget, steps) for c in candidates]
        asked, best = self.auto.speedup, max(speeds)
        if best >= NEAR * asked:
            return min(zip(candidates, speeds, strict=True), key=lambda pair: abs(pair[1] / asked - 1))[0], ""
        enough = [c for c, speed in zip(candidates, speeds, strict=True) if speed >= NEAR * best]
        said = f"{asked:g}x cannot be had: beside its computed steps a call takes too long for more than {best:.2f}x"
        return enough[-1], said

    def _fits(self, pipe: Any, fitted: artifacts.Fitted, any_solver: bool) -> bool:
        model, solver = fingerprints.differences(fitted, denoisers_of(pipe), pipe.scheduler)
        return not model and (any_solver or not solver)

    # -- times -------------------------------------------------------------------------------------------------------

    def took(self, trace: Trace, marks: list[Any], seconds: float) -> None:
        """A call has ended: when each of its steps began and the last was over, and how long it took in all.

        Never raises for a file that cannot be written.
        """
        if not trace.finished or len(marks) != len(trace.steps) + 1:
            return
        if len(trace.steps) <= FEW:  # a trial's: what loads and warms up is most of it, and would pass for every call's
            return
        steps = durations(marks)
        full = [s for s, record in zip(steps, trace.steps, strict=True) if isinstance(record.action, Full)]
        skipped = [s for s, record in zip(steps, trace.steps, strict=True) if not isinstance(record.action, Full)]
        with self._lock:
            for name, values in (("full", full), ("skipped", skipped), ("beside", [max(seconds - sum(steps), 0.0)])):
                if values:
                    self._times[name] = [*self._times[name][1 - RECENT :], statistics.median(values)]
            self.close()

    def close(self) -> None:
        """Keeps the times for other processes."""
        if self._file is not None and self._times["skipped"]:
            with contextlib.suppress(OSError):  # a cache that cannot be written to costs only what it would save
                self._file.parent.mkdir(parents=True, exist_ok=True)
                files.write_text(self._times_file, json.dumps(self._times))

    @property
    def _times_file(self) -> Path:
        return self._file.with_suffix(f".{_device(self._modules[0])}.times.json")

    def _known_times(self, method: Method) -> Times:
        """Measured here; in an earlier process; when it was calibrated; or else by count alone."""
        found = self._times
        if not found["full"]:
            found = {**found, **_kept_times(self._times_file)}
        if found["full"]:
            medians = {name: statistics.median(values) if values else 0.0 for name, values in found.items()}
            return Times(**medians)
        if isinstance(method, Forecast) and "times" in calibration(method.artifact).data:
            return Times(**calibration(method.artifact).data["times"])
        return Times(1.0, 0.0, 0.0)

    # -- what is learnt ----------------------------------------------------------------------------------------------

    def _place(
        self, modules: list[torch.nn.Module], num_steps: int, flow: Flow | None, scales: list[float], bound: list[Any]
    ) -> Path:
        """Where what is learnt of these weights at these levels and this guidance is kept."""
        models = [fingerprints.of_model(module) for module in modules]
        weights = digest_of({str(number): module for number, module in enumerate(modules)})
        levels = [round(level, 4) for level in flow.levels] if flow is not None else num_steps
        text = json.dumps([models, weights, levels, [round(w, 3) for w in scales], bound])
        folder = Path(self.auto.folder) if self.auto.folder is not None else _cache()
        return folder / f"forecast-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def _learnt(self, file: Path, *, silently: bool = False) -> dict[str, Any] | None:
        """The calibration that earlier runs left behind, if any; a damaged file is replaced by the next one."""
        try:
            return calibration(file).data if file.is_file() else None
        except Exception as error:  # whatever a file may hold, the run goes on without it
            if not silently:
                warnings.warn(f"vaccel: {error}; it counts for nothing", stacklevel=2)
            return None

    def learn(self, pipe: Any, trace: Trace, file: Path | None) -> None:
        """Adds a recorded run to what is known, in the cache folder; where ``file`` is None another process does.

        Whatever goes wrong is a warning and a note: the run itself has succeeded.
        """
        recorded: Recorded | None = trace.delivered
        trace.delivered = None
        if recorded is None or file is None:  # its trace says why
            return
        try:
            with self._lock:
                self._learn(pipe, trace, recorded, file)
        except Exception as error:
            said = f"vaccel: nothing was learnt from this run: {error}"
            warnings.warn(said, stacklevel=2)
            trace.notes.append(said)

    def _learn(self, pipe: Any, trace: Trace, recorded: Recorded, file: Path) -> None:
        _, sample = sample_of(*recorded, bands=1)
        sample |= {"forwards": trace.calls["large"], "done": True}
        header = fingerprints.header(Forecast.id, pipe, {}, num_steps=recorded.flow.num_steps, bands=1)
        # A name of its own: another process may be learning the same.
        data = {**header, "prompts": "", "samples": {f"run-{secrets.token_hex(6)}": sample}}
        before = self._learnt(file)
        try:
            self._keep(file, data)
        except Exception as error:  # this process need not learn again all the same
            self._spare = tempfile.TemporaryDirectory(prefix="vaccel-") if self._spare is None else self._spare
            self.auto = dataclasses.replace(self.auto, folder=self._spare.name)
            spare = Path(self._spare.name) / file.name
            if before is not None:
                artifacts.replace(spare, before)
            self._keep(spare, data)
            said = f"vaccel: the calibration of this run could not be saved ({error}); it is used in this process alone"
            warnings.warn(said, stacklevel=2)
            trace.notes.append(said)
            return
        trace.notes.append(f"Auto: the calibration of this run is saved in {file}")

    def _keep(self, file: Path, data: dict[str, Any]) -> None:
        """Joins a sample to what is known; takes the place of a damaged file."""
        if file.exists() and self._learnt(file, silently=True) is None:
            artifacts.replace(file, joined(None, data))
        else:
            artifacts.write(file, data)


def _kept_times(file: Path) -> dict[str, list[float]]:
    """The times of an earlier process; none where the file is missing, damaged, or holds what no clock says."""
    try:
        data = json.loads(file.read_text())
    except (ValueError, OSError, RecursionError):
        return {}
    names = ("full", "skipped", "beside")
    if not isinstance(data, dict) or any(not isinstance(data.get(name), list) for name in names):
        return {}
    numbers = [value for name in names for value in data[name]]
    good = all(type(v) in (int, float) and math.isfinite(v) and v >= 0 for v in numbers)
    return {name: data[name] for name in names} if good and data["full"] and min(data["full"]) > 0 else {}


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaccel"


def _device(module: torch.nn.Module) -> str:
    device = next(module.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu{torch.get_num_threads()}"
    return "".join(c if c.isalnum() else "-" for c in name)
