"""What the runs of a patched model did, for whoever asks after sampling: the trace node, a log, a test."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Iterator

from ...engine.trace import Trace

#: So many runs are remembered.
REMEMBERED = 16
#: Letters a line of a timeline.
WIDTH = 50


@dataclasses.dataclass
class Record:
    """One run.

    Attributes:
        sampler: what made it.
        timeline: one letter for every call of the model, "F" where it was computed (``vaccel.actions``).
        forwards, computed: of all conditions, how many there would have been, and how many there were.
        expected: (PSNR in dB, that which nineteen runs in twenty reach), as other models'; None where it is unknown.
        notes: what there is to say; why something was computed in full, above all.
        finished: whether it came to its end.
        trace: the engine's own record; None where there was nothing for it to do.
    """

    sampler: str = ""
    method: str = ""
    timeline: str = ""
    forwards: int = 0
    computed: int = 0
    expected: tuple[float, float] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    finished: bool = False
    trace: Trace | None = None

    @property
    def computed_calls(self) -> int:
        """How many calls of the sampler were computed."""
        return self.timeline.count("F")

    def say(self, note: str) -> bool:
        """Adds a note; whether it is new."""
        new = note not in self.notes
        if new:
            self.notes.append(note)
        return new

    def report(self) -> str:
        """Some lines for the eye."""
        calls, done = len(self.timeline), "" if self.finished else " (ended early)"
        rows = [self.timeline[i : i + WIDTH] for i in range(0, calls, WIDTH)]
        lines = [f"{self.method} with {self.sampler}{done}", *rows]
        lines.append(f"computed {self.computed_calls} of {calls} calls, {self.computed} of {self.forwards} forwards")
        if self.expected is not None:
            mean, most = self.expected
            lines.append(
                f"predicted: {mean:.1f} dB to the full run, 19 runs in 20 above {most:.1f} dB (as other models'; this "
                "one's was not measured)"
            )
        elif self.computed_calls < calls:
            lines.append("predicted: nothing is known")
        return "\n".join([*lines, *self.notes])


class Journal:
    """The latest runs of a patched model and of all its clones; threads may write at once."""

    def __init__(self) -> None:
        self._records: collections.deque[Record] = collections.deque(maxlen=REMEMBERED)
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> Journal:
        return self  # a clone of the model writes into the same one

    def add(self, record: Record) -> None:
        with self._lock:
            self._records.append(record)

    def __iter__(self) -> Iterator[Record]:
        with self._lock:
            return iter(list(self._records))

    @property
    def last(self) -> Record | None:
        """The run that ended last; None before any has."""
        with self._lock:
            return self._records[-1] if self._records else None
