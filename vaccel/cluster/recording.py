"""Calibrations by workers: they measure samples, the driver joins them to the artifact and fits.

The artifact is that of one process, bit for bit but for the seconds that it took: what depends on an order (the sums of
Forecast's inner products, and which samples a trial run knows of) follows the order of the prompts, whatever the order
in which samples come back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..calibrate.forecast import without
from ..calibrate.lemica import record_of
from ..calibrate.samples import Progress, Samples, silent
from ..planning import joining, schema
from ..planning.joining import tried
from ..planning.packing import added
from . import messages
from .crew import Crew, CrewError, Done
from .making import taken
from .messages import Task, shown


def record(
    crew: Crew, method: str, prompts: list[str], seeds: Sequence[int] | None, path: Path, options: dict[str, Any],
    progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Measures every sample that the artifact does not have; writes it after each and returns its data.

    Args:
        crew: open, with the method's pipeline and ``options``.

    Raises ``ValueError`` when ``path`` holds a calibration of something else, ``OSError`` where it cannot be written,
    ``crew.CrewError`` for a sample that cannot be measured; what was measured is in the artifact then.
    """
    header = _parsed(crew.ready.header, "a calibration's header")
    if header.get("method") != method:
        raise CrewError(f"the workers are calibrating something else than {method}")
    recording = {"forecast": _Forecast, "lemica": _LeMiCa}.get(method, _Recording)
    return recording(crew, Samples(path, header, prompts, seeds), options, progress).run()


class _Recording:
    """A task a sample."""

    def __init__(self, crew: Crew, samples: Samples, options: dict[str, Any], progress: Progress):
        self.crew, self.samples, self.options, self.progress = crew, samples, options, progress
        self.jobs = {key: (prompt, seed) for key, prompt, seed in samples.jobs}
        self.total = len(self.jobs)

    def run(self) -> dict[str, Any]:
        missing = [key for key in self.jobs if key not in self.samples.data]
        self.do([(key, self.task(key)) for key in missing])
        self.progress(self.total, self.total, "done")
        return self.samples.merge()

    def task(self, key: str, what: str = "", held: Any = None) -> bytes:
        prompt, seed = self.jobs[key]
        return messages.write(Task(prompt, seed, what, json.dumps(held).encode() if held is not None else b""))

    def do(self, tasks: Sequence[tuple[str, bytes]], **options: Any) -> None:
        """Runs tasks and keeps what they measured."""
        taken(self.crew.do(tasks, looking=self.looking, **options), self.kept, self.crew)

    def looking(self, key: str | None) -> None:
        self.progress(self.done(), self.total, self.jobs[key][0] if key in self.jobs else "waiting for workers")

    def done(self) -> int:
        return sum(key in self.samples.data for key in self.jobs)

    def kept(self, done: Done) -> None:
        self.keep(done.key, self.measured(done))

    def keep(self, key: str, sample: dict[str, Any]) -> None:
        """Joins a sample, once it is found to be one, to the artifact."""
        self.checked({key: sample})
        self.samples.data[key] = sample
        self.samples.save()

    def measured(self, done: Done) -> dict[str, Any]:
        if done.error:
            raise CrewError(f"{shown(self.jobs.get(done.key, ('', 0))[0], 60)!r}: {done.error}")
        return _parsed(done.data, "a sample")

    def checked(self, samples: dict[str, Any], **fields: Any) -> None:
        """Raises ``CrewError`` for what is no sample of this calibration."""
        try:
            whole = self.samples.artifact(samples={**self.samples.data, **samples}, **fields)
            whole = joining.joined(None, json.loads(json.dumps(whole)))  # as it will be written
            schema.check(whole, self.samples.header["method"])
        except Exception as error:  # a fit of what is no sample may fail in any way
            raise CrewError(f"a worker sent no sample: {shown(str(error), 300)}") from None


class _LeMiCa(_Recording):
    """A sample in several tasks, for which its worker keeps the sample's own run."""

    def run(self) -> dict[str, Any]:
        data, path = self.samples.data, self.samples.path
        self.shares: dict[str, float] = {}
        missing = [key for key in self.jobs if not data.get(key, {}).get("done")]
        self.do([(key, self.task(key, held=data.get(key))) for key in missing], further=self.further)
        for key in self.jobs:  # of an interrupted calibration in one process
            record_of(path, key).unlink(missing_ok=True)
        self.progress(self.total, self.total, "done")
        return self.samples.merge()

    def further(self, key: str, data: bytes) -> bytes | None:
        sample = _parsed(data, "a sample").get("sample")
        return None if not isinstance(sample, dict) or sample.get("done") else self.task(key, held=sample)

    def done(self) -> int:
        return sum(bool(self.samples.data.get(key, {}).get("done")) for key in self.jobs)

    def kept(self, done: Done) -> None:
        self.keep(done.key, self.measured(done).get("sample"))


class _Forecast(_Recording):
    """Recordings first, then trial runs, which are by the other samples' recordings."""

    def run(self) -> dict[str, Any]:
        trials = self.options["trials"]
        self.total = len(self.jobs) * (2 if trials else 1)
        most = self.options["tail_samples"]
        missing = [
            (key, self.task(key, "sample", held=most is None or number < most))
            for number, key in enumerate(self.jobs)
            if key not in self.samples.data
        ]
        self.do(missing)
        if trials:
            self.do([(key, self.task(key, "trials", held=held)) for key, held in self.trials()])
        self.finish()
        times = self.times() if trials and "times" not in self.samples.others else {}
        self.progress(self.total, self.total, "done")
        return self.samples.merge(**times)

    def done(self) -> int:
        data = [self.samples.data.get(key) for key in self.jobs]
        return sum((sample is not None) + (self.total > len(self.jobs) and tried(sample or {})) for sample in data)

    def trials(self) -> Iterator[tuple[str, Any]]:
        """Every sample without trial runs, with the calibration by which one process would make them: there the
        samples before it are in the sum already."""
        data, others = dict(self.samples.data), dict(self.samples.others)
        for key in self.jobs:
            sample = data[key]
            if not tried(sample):
                known = without(self.samples.header, others, data, key)
                yield key, {"known": known, "spent": {name: sample[name] for name in ("forwards", "seconds")}}
            if "products" in sample:
                others["products"] = added([*filter(None, [others.get("products")]), sample["products"]])
                data[key] = {name: value for name, value in sample.items() if name != "products"}

    def kept(self, done: Done) -> None:
        found = self.measured(done)
        self.keep(done.key, {**self.samples.data.get(done.key, {}), **found})
        if tried(found):
            self.finish(only_tried=True)

    def finish(self, *, only_tried: bool = False) -> None:
        """Adds the inner products of samples that are over to the sum, in the order of the prompts."""
        for key in self.jobs:
            sample = self.samples.data.get(key)
            if sample is None or (only_tried and not tried(sample)):
                return
            if "products" in sample:
                self.samples.data[key] = {**sample, "done": True}
                self.samples.save()

    def times(self) -> dict[str, Any]:
        """Of one of the workers: those that will run it are of its kind."""
        prompt, seed = next(iter(self.jobs.values()))
        task = messages.write(Task(prompt, seed, "times"))
        (done,) = list(self.crew.do([("times", task)]))
        found = self.measured(done)
        self.checked({}, **found)
        return {"times": found["times"]} if "times" in found else {}


def _parsed(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object.  Raises ``CrewError`` for anything else."""
    try:
        found = json.loads(data)
        schema.check_nesting(found)
        if isinstance(found, dict):
            return found
        said = "no object"
    except (ValueError, RecursionError) as error:
        said = shown(str(error), 200)
    raise CrewError(f"a worker sent no {what.removeprefix('a ')}: {said}")
