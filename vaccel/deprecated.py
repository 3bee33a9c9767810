"""What is still taken under an old name, and until when.  One table, which the tests go through."""

from __future__ import annotations

import dataclasses
import warnings


@dataclasses.dataclass(frozen=True)
class Renamed:
    """An argument under a new name.

    Attributes:
        of: the function or command that takes it.
        old, new: its names.
        until: the first version that no longer knows the old one.
    """

    of: str
    old: str
    new: str
    until: str

    def __str__(self) -> str:
        return f"{self.old} is deprecated: it is called {self.new}, and {self.old} goes with vaccel {self.until}"


RENAMED = (
    Renamed("calibrate_lemica", "hopeless", "min_budget", "0.4.0"),
    Renamed("vaccel calibrate lemica", "--hopeless", "--min-budget", "0.4.0"),
    Renamed("Forecast.load", "gain", "error_growth", "0.4.0"),
    Renamed("Handle.memory_plan", "guidance", "guidance_scale", "0.4.0"),
    Renamed("Handle.memory_plan", "batch", "num_videos_per_prompt", "0.4.0"),
)


def note(of: str, old: str) -> str:
    """What is said of an old name."""
    return str(next(each for each in RENAMED if (each.of, each.old) == (of, old)))


def warn(of: str, old: str) -> None:
    """A ``DeprecationWarning`` at the place that called the caller of this."""
    warnings.warn(note(of, old), DeprecationWarning, stacklevel=3)
