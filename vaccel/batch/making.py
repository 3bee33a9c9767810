"""Makes clips with one pipeline, job after job."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..api import Handle
from ..engine.trace import Trace
from ..evaluate.clips import frames_of, write_video
from ..evaluate.contenders import Contender
from ..evaluate.metrics import psnr
from .manifest import Job, Manifest

#: (clips done, all clips, the prompt of the one in progress)
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Made:
    """A job that is over: the fields of its line in the manifest, and why it failed; "" where it did not."""

    job: Job
    said: dict[str, Any]
    error: str = ""


class Making:
    """A pipeline with a method, and what every clip of a batch is made with.  A context manager.

    Args:
        pipe, small: the pipeline, and the small model beside it.
        contender: the method, or a number of steps.
        call: arguments of the pipeline's call, ``num_inference_steps`` among them.
        fps: frames a second of the files.
        measure: whether every clip is also made by the full model, and compared.
        compile: whether the forwards are compiled.
    """

    def __init__(
        self, pipe: Any, contender: Contender, call: dict[str, Any], *, small: Any = None, fps: int = 12,
        measure: bool = False, compile: bool = False,
    ):  # fmt: skip
        self.pipe, self.call, self.fps, self.measure = pipe, call, fps, measure
        self._applied = contender.applied(pipe, small, compile=compile)
        self._steps = {"num_inference_steps": contender.num_steps} if contender.num_steps else {}
        self.name = contender.label
        self.handle: Handle | None = None

    def __enter__(self) -> Making:
        self.handle = self._applied.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._applied.__exit__(*exception)

    def make(self, job: Job, path: Path) -> dict[str, Any]:
        """Makes a clip and writes it whole or not at all; returns what the manifest says of it.

        Raises whatever the pipeline raises, and ``OSError`` where the file cannot be written.
        """
        start = time.perf_counter()
        frames = self._frames(job, self._steps)
        seconds = time.perf_counter() - start
        write_video(path, frames, self.fps)
        said: dict[str, Any] = {"file": path.name, "method": self.name, "seconds": round(seconds, 3)}
        if self.handle is not None:
            said |= _of(self.handle.trace)
        if self.measure and self.handle is not None:
            with self.handle.using(None):
                value = psnr(self._frames(job, {}), frames)
            said["measured"] = {"psnr": round(value, 2) if math.isfinite(value) else "inf"}
        return said

    def _frames(self, job: Job, steps: dict[str, Any]) -> Any:
        generator = torch.Generator().manual_seed(job.seed)
        return frames_of(self.pipe(job.prompt, **{**self.call, **steps, "generator": generator}))


def _of(trace: Trace) -> dict[str, Any]:
    predicted = {name: round(value, 4) for name, value in trace.predicted.items() if math.isfinite(value)}
    return {"timeline": trace.timeline(), "forwards": trace.calls, "predicted": predicted, "notes": trace.notes}


def make_all(
    making: Making, manifest: Manifest, jobs: Sequence[Job], progress: Progress = lambda *_: None
) -> list[Made]:
    """Makes what is not there yet, in order; a clip that fails is told of and the others are made all the same.

    Returns the jobs that were run.  Raises ``OSError`` where the folder cannot be written, and ``KeyboardInterrupt``:
    clips that are finished are in the manifest then.
    """
    manifest.folder.mkdir(parents=True, exist_ok=True)
    todo, found = [job for job in jobs if not manifest.finished(job)], []
    for job in todo:
        progress(len(jobs) - len(todo) + len(found), len(jobs), job.prompt)
        try:
            made = Made(job, making.make(job, manifest.folder / manifest.name(job)))
        except OSError:
            raise
        except Exception as error:
            made = Made(job, {"error": f"{type(error).__name__}: {error}"[:500]}, f"{type(error).__name__}: {error}")
        manifest.add(job, **made.said)
        found.append(made)
    progress(len(jobs), len(jobs), "done")
    return found
