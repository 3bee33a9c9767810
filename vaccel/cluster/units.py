"""Samples of calibrations on a worker: the same functions as in one process, a sample or a part of one at a time."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cli.loading import Loaded
from ..planning import schema
from .messages import Ready, Setup, Task

#: Seconds that a sample of many parts is measured for before the driver hears of it.
SLICE = 30.0


class Units:
    """A pipeline that is calibrated, for as long as the worker lives.  ``setup.options`` are the method's."""

    def __init__(self, setup: Setup, files: dict[str, str]):
        if setup.what not in KINDS:
            raise ValueError(f"nothing is calibrated as {setup.what!r}; known: {', '.join(KINDS)}")
        loaded = Loaded(setup.pipeline, setup.small, setup.call, setup.dtype)
        self._doing = KINDS[setup.what](loaded, {"num_inference_steps": setup.steps, **loaded.call}, **setup.options)
        self.ready = Ready(header=json.dumps(self._doing.header).encode())

    def make(self, task: Task) -> bytes:
        """JSON of what was measured."""
        held = json.loads(task.held) if task.held else None
        return json.dumps(self._doing.make(task, held)).encode()


class _TeaCache:
    def __init__(self, loaded: Loaded, call: dict[str, Any], *, retention: bool, of_small: bool):
        from ..calibrate.teacache import header_of

        if of_small:
            loaded.pipe.transformer = required_small(loaded)
        self.pipe, self.call, self.retention = loaded.pipe, call, retention
        self.header = header_of(self.pipe, call, retention)

    def make(self, task: Task, held: Any) -> dict[str, Any]:
        from ..calibrate.teacache import sample_of

        return sample_of(self.pipe, task.prompt, task.seed, self.call, self.retention)


class _MixCache:
    def __init__(self, loaded: Loaded, call: dict[str, Any], *, candidates: list[int] | None):
        from ..calibrate.mixcache import header_of

        self.pipe, self.call = loaded.pipe, call
        self.header = header_of(self.pipe, call, tuple(candidates) if candidates else None)

    def make(self, task: Task, held: Any) -> dict[str, Any]:
        from ..calibrate.mixcache import sample_of

        return sample_of(self.pipe, task.prompt, task.seed, self.call, tuple(self.header["candidates"]))


class _LeMiCa:
    """Edges for ``SLICE`` seconds a time; the sample's own run is kept until another sample is asked for."""

    def __init__(self, loaded: Loaded, call: dict[str, Any], *, batch: int, slice: float = SLICE, **settings: Any):
        from ..calibrate.lemica import header_of, replayer_of

        self.batch, self.slice = batch, slice
        self.header = header_of(loaded.pipe, call, loaded.small, batch=batch, **settings)
        self.replayer = replayer_of(loaded.pipe, call, loaded.small, **settings).__enter__()  # until the process ends
        self.folder = tempfile.TemporaryDirectory(prefix="vaccel-record-")

    def make(self, task: Task, held: Any) -> dict[str, Any]:
        from ..calibrate.lemica import NOTHING, measure

        sample = held or dict(NOTHING, errors={})
        kept = Path(self.folder.name) / "record.safetensors"
        began, done, total = time.monotonic(), 1, 1
        for done, total in measure(self.replayer, sample, kept, self.header, task.prompt, task.seed, self.batch):
            if time.monotonic() - began > self.slice and done < total:
                return {"sample": sample, "share": done / total}
        kept.unlink(missing_ok=True)
        return {"sample": {**sample, "done": True}, "share": 1.0}


class _Forecast:
    """Of ``task.what``: "sample" is the recording with or without error growth, "trials" are runs by what is held of
    the other samples, "times" the steps' seconds."""

    def __init__(
        self, loaded: Loaded, call: dict[str, Any], *, bands: int, tails: int, tail_samples: int | None,
        trials: list[float], keep: str, first_order: bool, metrics: list[str], solver: str | None,
    ):  # fmt: skip
        from ..calibrate import first_order as solvers
        from ..calibrate.forecast import header_of
        from ..evaluate.fidelity import beside

        self.pipe, self.call, self.trials = loaded.pipe, call, trials
        if solver is not None:
            self.pipe.scheduler = solvers.named(solver, self.pipe.scheduler)
        self.header = header_of(self.pipe, call, bands=bands, tails=tails, tail_samples=tail_samples, trials=trials)
        other = solvers.first_order(self.pipe.scheduler) if first_order else None
        self.tails, self.shared = tails, (bands, keep, _nobody, other, beside(metrics))

    def make(self, task: Task, held: Any) -> dict[str, Any]:
        from ..calibrate.forecast import SampleRun, known_of, positions_of, times_of
        from ..calibrate.samples import prompts_encoded_once

        steps = self.header["num_steps"]
        with prompts_encoded_once(self.pipe):
            if task.what == "times":
                return times_of(self.pipe, task.prompt, task.seed, self.call, steps)
            run = SampleRun(self.pipe, task.prompt, task.seed, self.call, *self.shared)
            if task.what == "sample":
                return run.measure(positions_of(steps, self.tails) if held else [])
            schema.check({**held["known"]["data"], "prompts": ""}, "forecast")
            return run.run_trials(known_of(held["known"]), self.trials, held["spent"])


def _nobody(share: float) -> None:
    """Is told how much of a sample is done."""


def required_small(loaded: Loaded) -> Any:
    """The small model.  Raises ``ValueError`` where there is none."""
    if loaded.small is None:
        raise ValueError("there is no small model: pass --small")
    return loaded.small


KINDS: dict[str, Callable[..., Any]] = {
    "teacache": _TeaCache, "mixcache": _MixCache, "lemica": _LeMiCa, "forecast": _Forecast,
}  # fmt: skip
