"""A request, its way through the queue, and what came of it."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import Any

import numpy as np

from ..engine.trace import Trace
from ..evaluate.metrics import psnr
from ..evaluate.pictures import difference
from .sampling import Cancelled

#: What the slider sets, in the list of methods.
AUTO = "Auto"


@dataclasses.dataclass(frozen=True)
class Request:
    """One click: the prompt, the noise's seed, the number of steps, and how fast.

    ``speed`` is how many times as fast as the full model, 1 for all steps computed; ``method`` names one of the
    studio's own methods instead, ``AUTO`` what ``speed`` says.
    """

    prompt: str
    seed: int
    steps: int
    speed: float
    method: str = AUTO


@dataclasses.dataclass(frozen=True)
class Made:
    """What came of a request.

    Attributes:
        full, fast: clips [F, H, W, 3] in [0, 1]; an image is a clip of one frame.
        full_seconds, fast_seconds: of the calls of the pipeline.
        kept: whether the full model's clip, and its time, are of an earlier request.
        label: the method, as it would be written.
        traces: of the fast run's loops, most pipelines having one; empty where nothing of vaccel ran.
        fps: frames a second that clips are played with.
    """

    request: Request
    full: np.ndarray
    fast: np.ndarray
    full_seconds: float
    fast_seconds: float
    kept: bool
    label: str
    traces: tuple[Trace, ...]
    fps: float

    @property
    def speedup(self) -> float:
        """How many times as fast the call was, as it was measured."""
        return self.full_seconds / self.fast_seconds

    @property
    def psnr(self) -> float:
        """PSNR of the fast clip to the full model's in dB; inf where they are equal."""
        return psnr(self.full, self.fast)

    @property
    def difference(self) -> np.ndarray:
        """The clips' difference, amplified (``vaccel.evaluate.pictures.AMPLIFIED``); [F, H, W, 3] in [0, 1]."""
        return difference(self.full, self.fast)

    @property
    def trace(self) -> Trace | None:
        """Of the last loop."""
        return self.traces[-1] if self.traces else None

    @property
    def computed(self) -> tuple[int, int] | None:
        """(steps at which the full model ran, all steps) of the fast run; None where they were not followed."""
        steps = [step for trace in self.traces for step in trace.steps]
        return (sum(step.large > 0 for step in steps), len(steps)) if steps else None

    def numbers(self) -> dict[str, Any]:
        """The figures as plain data; a PSNR of equal clips is the string "equal"."""
        decibels = self.psnr
        return {
            "method": self.label,
            "speedup": round(self.speedup, 3),
            "psnr": "equal" if decibels == math.inf else round(decibels, 2),
            "seconds": {"full": round(self.full_seconds, 3), "fast": round(self.fast_seconds, 3)},
            "full_kept": self.kept,
            "steps": self.request.steps,
            "computed": self.computed[0] if self.computed else None,
            "timeline": self.trace.timeline() if self.trace is not None else "",
            "predicted": {n: round(v, 4) for n, v in (self.trace.predicted if self.trace is not None else {}).items()},
        }


class Job:
    """A request in the queue.

    Attributes:
        request, owner: what was asked, and by whom (a browser's session).
        status: "waiting", "running", "done", "failed" or "cancelled".
        done, total, what: how far the run in progress is, in steps (total 0 where that is unknown), and what it is.
        made: the result of a job that is done.
        error: what went wrong, in words, of one that failed.
    """

    def __init__(self, request: Request, owner: str):
        self.request, self.owner = request, owner
        self.status, self.error = "waiting", ""
        self.done, self.total, self.what = 0, 0, ""
        self.made: Made | None = None
        self._stop, self._over = threading.Event(), threading.Event()

    @property
    def over(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self._over.is_set()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def cancel(self) -> None:
        """Asks it to stop: at once where it waits, after the step in progress where it runs."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> Made:
        """The result, once there is one.

        Raises ``Cancelled``, ``RuntimeError`` with what went wrong, or ``TimeoutError`` after ``timeout`` seconds.
        """
        if not self._over.wait(timeout):
            raise TimeoutError(f"the request is {self.status} after {timeout:g} s")
        if self.status == "cancelled":
            raise Cancelled
        if self.made is None:
            raise RuntimeError(self.error)
        return self.made

    def tell(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def end(self, status: str, *, made: Made | None = None, error: str = "") -> None:
        self.made, self.error, self.status = made, error, status
        self._over.set()
