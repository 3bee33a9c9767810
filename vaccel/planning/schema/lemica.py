"""LeMiCa's calibration: the error of every edge of its graph."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import place
from .fields import LARGEST, Calibrated, Declared, Error, Fault, Forwards, Steps, is_whole_number


class LeMiCaSample(Declared, kw_only=True):
    """The edges that were measured so far, by "start-end"."""

    errors: dict[str, Error]
    forwards: Forwards
    small_forwards: Forwards
    done: bool = False


class LeMiCa(Calibrated, kw_only=True):
    num_steps: Steps
    reuse: str
    samples: dict[str, LeMiCaSample]

    def faults(self) -> Iterator[Fault]:
        for name, sample in self.samples.items():
            for edge, error in sample.errors.items():
                at = place(place("samples", name) + ".errors", edge)
                start, _, end = edge.partition("-")
                if not (is_whole_number(start) and is_whole_number(end) and int(start) < int(end) < self.num_steps):
                    yield at, f"must be named for two steps, such as 0-2, from 0 to {self.num_steps - 1}"
                if LARGEST < error < float("inf"):
                    yield at, f"must be at most {LARGEST:g}, or infinite"
