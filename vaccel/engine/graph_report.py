"""What a trace says of CUDA graphs: one line, kept up to date while the run goes on, so that an aborted one has it."""

from __future__ import annotations

from .launch_bound import LAUNCH_BOUND


class Report:
    """Of one run.

    Args:
        notes: the trace's; the line is put at their end when there is first something to say, and changed in place.
    """

    def __init__(self, notes: list[str]):
        self._notes, self._line = notes, ""
        self._captures = self._warmups = self._bytes = self._limit = 0
        self._seconds = 0.0
        self._shares: dict[str, float] = {}  # of the device's time that enqueueing takes, of what is not launch-bound
        self._why = ""
        self._replays = self._measures = False

    def captured(self, warmups: int, seconds: float, nbytes: int) -> None:
        """Another step was captured; ``nbytes`` are held by all of them now."""
        self._captures, self._warmups = self._captures + 1, self._warmups + warmups
        self._seconds, self._bytes, self._replays = self._seconds + seconds, nbytes, True
        self._write()

    def replayed(self) -> None:
        if not self._replays:
            self._replays = True
            self._write()

    def undecided(self) -> None:
        """Whether a kind of call is launch-bound is not known yet."""
        if not self._measures:
            self._measures = True
            self._write()

    def unbound(self, name: str, share: float) -> None:
        """A call is not captured: enqueueing it takes but this share of the device's time."""
        if name not in self._shares:
            self._shares[name] = share
            self._write()

    def crowded(self, limit: int) -> None:
        """A call is not captured: there is no room."""
        if not self._limit:
            self._limit = limit
            self._write()

    def refused(self, why: str) -> None:
        """From here on nothing is captured or replayed."""
        if not self._why:
            self._why = why
            self._write()

    def _write(self) -> None:
        line = self._said()
        if line == self._line:
            return
        if self._line in self._notes:
            at = self._notes.index(self._line)
            self._notes[at : at + 1] = [line] if line else []
        elif line:
            self._notes.append(line)
        self._line = line

    def _said(self) -> str:
        shares = ", ".join(f"{share:.2f} in {name}" for name, share in self._shares.items())
        why = f"enqueueing takes {shares} of the device's time, from {LAUNCH_BOUND:g} on a step is launch-bound"
        if self._captures:
            forwards = f"{self._warmups} warm-up forward{'s' * (self._warmups != 1)}"
            said = f"CUDA graphs: {self._captures} captured in {self._seconds:.2f} s with {forwards}, "
            said += f"{self._bytes / 1e6:.3g} MB held"
            said += f"; not all: {why}" if shares else ""
        elif self._why:
            return f"no CUDA graphs: {self._why}"
        elif self._replays:
            said = ""
        elif shares:
            said = f"no CUDA graphs: {why}"
        else:
            said = "no CUDA graphs yet: no step came often enough to be measured" if self._measures else ""
        if self._why:
            said += f"; none from then on: {self._why}"
        if self._limit:
            crowded = f"no room for other kinds of calls beside {self._limit}"
            said = f"{said}; {crowded}" if said else f"CUDA graphs: {crowded}"
        return said
