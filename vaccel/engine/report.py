"""What a run came to, for whoever watches many: a record, a line for the log, and counters."""

from __future__ import annotations

import dataclasses
import logging
import statistics
from collections import Counter
from collections.abc import Callable, Iterable

from .trace import Trace

#: Says a line a run at INFO.
log = logging.getLogger("vaccel")


@dataclasses.dataclass(frozen=True)
class RunReport:
    """One run of an accelerated pipeline, whether it came to its end or not.

    Attributes:
        pipeline: class of the pipeline.
        trace: what the run did, step by step.
        seconds: from the run's first step to its end, as the caller waited.
        step_seconds: of every step, on the device where it is a GPU; None where they were not measured.
        error: class of the exception that ended it; "" where none did.
    """

    pipeline: str
    trace: Trace
    seconds: float
    step_seconds: tuple[float, ...] | None = None
    error: str = ""

    @property
    def method(self) -> str:
        """Name of the method that ran, such as "forecast"."""
        return str(self.trace.method.get("method", ""))

    @property
    def computed(self) -> int:
        """Steps that were computed in full."""
        return sum(step.action.is_full for step in self.trace.steps)

    @property
    def skipped(self) -> int:
        """Steps for which something else stood in."""
        return len(self.trace.steps) - self.computed

    @property
    def saved_seconds(self) -> float | None:
        """What skipped steps would have taken beyond what they did: each as long as the median computed one; None where
        that is not known."""
        if self.step_seconds is None or not self.computed:
            return None
        pairs = list(zip(self.trace.steps, self.step_seconds, strict=True))
        full = statistics.median(seconds for step, seconds in pairs if step.action.is_full)
        return sum(full - seconds for step, seconds in pairs if not step.action.is_full)

    @property
    def predicted(self) -> dict[str, float]:
        """What was expected of it: "error", and "psnr" and "psnr_low" in dB, where something was."""
        return dict(self.trace.predicted)

    @property
    def guard(self) -> str:
        """The guard's verdict; "" where there was none."""
        return next((n.removeprefix("guard: ") for n in self.trace.notes if n.startswith("guard: ")), "")

    @property
    def fallbacks(self) -> dict[str, int]:
        """Why steps were computed that should not have been, and how many."""
        found = Counter(step.reason for step in self.trace.steps if step.reason)
        found.update(note for note in self.trace.notes if note.endswith("; computed in full"))
        return dict(found)

    @property
    def attributes(self) -> dict[str, str]:
        """What tells one series of counters from another."""
        return {"pipeline": self.pipeline, "method": self.method}

    def counts(self) -> dict[str, float]:
        """What the run adds to counters, by their names."""
        calls = self.trace.calls
        return {
            "vaccel.runs": 1,
            "vaccel.runs.aborted": int(not self.trace.finished),
            "vaccel.steps.computed": self.computed,
            "vaccel.steps.skipped": self.skipped,
            "vaccel.forwards.large": calls["large"],
            "vaccel.forwards.small": calls["small"],
            "vaccel.seconds": self.seconds,
            "vaccel.seconds.saved": max(0.0, self.saved_seconds or 0.0),
            "vaccel.fallbacks": sum(self.fallbacks.values()),
        }

    def __str__(self) -> str:
        said = [
            f"{self.pipeline}: {self.method}, {self.computed} of {self.trace.num_steps} steps computed",
            f"{self.seconds:.2f} s" + (f" ({s:.2f} s saved)" if (s := self.saved_seconds) is not None else ""),
        ]
        if "psnr" in self.trace.predicted:
            low, psnr = self.trace.predicted.get("psnr_low"), self.trace.predicted["psnr"]
            said.append(f"{psnr:.1f} dB predicted" + (f" (19 in 20 above {low:.1f})" if low is not None else ""))
        elif "error" in self.trace.predicted:
            said.append(f"error {self.trace.predicted['error']:.3g} predicted")
        said += [f"guard: {self.guard}"] if self.guard else []
        said += [f"{n} steps {reason}" for reason, n in self.fallbacks.items()]
        if self.error or not self.trace.finished:
            said.append(f"stopped at step {len(self.trace.steps)}" + (f" by {self.error}" if self.error else ""))
        return ", ".join(said)


def tell(report: RunReport, listeners: Iterable[Callable[[RunReport], object]]) -> None:
    """Logs a run and calls who asked for it.  What a listener raises is logged: the run itself has succeeded."""
    log.info("%s", report)
    for listener in list(listeners):
        try:
            listener(report)
        except Exception:
            log.exception("vaccel: a listener of on_run has failed; the run is whole")
