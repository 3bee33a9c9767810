"""Auto: chooses the method and its budget for a requested speedup or PSNR, from the pipeline's calibrations."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from ..cache import Store, VelocityHistory
from ..planning.artifacts import Fitted
from ..planning.calibration import Calibration, calibration
from ..planning.fidelity import Fidelity
from ..planning.flow import Flow
from ..planning.gram import CORRECTING
from ..planning.prior import shipped
from .base import Method, Policy, RunInfo, require
from .forecast import Forecast
from .lemica import LeMiCa, measured

#: Root mean square over mean absolute value of a normal distribution; LeMiCa's calibration measures the latter.
RMS_OF_MEAN = math.sqrt(math.pi / 2)
#: In dB: from here on a difference to the full run cannot be seen, by VMAF, ColorVideoVDP and flicker on both trained
#: families (``bench/measure_visible.py``).
VISIBLE = 48.0
#: No prompt of the trained families' own kind has forecasts so many times as wrong as calibrated.
GUARD = 2.0
#: So many steps, or less, are skipped only where a calibration shows that they can be.
FEW = 8


class Candidate:
    """A method and its budget, the expected error of the latents (rms), and its PSNR.

    Args:
        method, error: or what makes them when they are first asked for: every budget has some, and one is chosen.
        fidelity: PSNR by error; None where it is unknown.
        expected: other metrics, by name, of an error.
        kind, fitted: the method's class, and the model and scheduler that it was calibrated with.
    """

    def __init__(
        self, method: Method | Callable[[], Method] | None, budget: int, error: float | Callable[[], float],
        fidelity: Fidelity | None = None, kind: type[Method] = Method, fitted: Fitted = (),
        expected: Callable[[float], dict[str, float]] = lambda error: {},
    ):  # fmt: skip
        self._expected = expected
        self._method, self.budget, self._error, self.fidelity = method, budget, error, fidelity
        self.any_solver, self.fitted = kind.any_solver, fitted

    @functools.cached_property
    def method(self) -> Method | None:
        return self._method() if callable(self._method) else self._method

    @functools.cached_property
    def error(self) -> float:
        return self._error() if callable(self._error) else self._error

    @functools.cached_property
    def metrics(self) -> dict[str, float]:
        """What is expected by other metrics that were calibrated."""
        return self._expected(self.error)

    @functools.cached_property
    def psnr(self) -> tuple[float, float] | None:
        """(expected, what nineteen runs in twenty reach) in dB."""
        return None if self.fidelity is None else self.fidelity.at(self.error)


@dataclasses.dataclass(frozen=True)
class Auto(Method):
    """Picks method and budget for every run: ``Auto(speedup=2.5)``, or ``Auto(psnr=40)`` for the fastest to reach it.

    With ``learn=1`` the first run of a pipeline is computed in full, exactly as without vaccel, and recorded as a
    calibration; later runs are accelerated.  These calibrations are stored in ``folder`` and found again by model,
    noise levels and guidance scale.

    Args:
        speedup: the factor (> 1) by which a call of the pipeline should be faster than in full, in wall time.  Times of
            computed and skipped steps and of the rest of the call are measured and updated by every run.
            Where it cannot be had the trace says so.
        psnr: in dB, of the clip against the full run's; the budget is chosen so that nineteen runs in twenty
            can be expected to reach it (``vaccel.planning.fidelity``).  A calibration with trial runs (`vaccel
            calibrate forecast`) makes it sure; without one it is what other models reach.  With a speedup too, it
            comes first.
        learn: the number of runs to calibrate from; 0 to use ``artifacts``, or what is known of other models
            (``Forecast.prior``): then the first run is accelerated too.
        artifacts: Forecast and LeMiCa calibrations to choose among; where several offer a budget, the one with the
            smallest predicted error is used.  Forecast's serve runs of any steps and levels, LeMiCa's those of their
            own number of steps.
        folder: where the recorded calibrations are stored; by default ``vaccel`` in the user's cache.
        guard: as in ``Forecast``, 0 for none; by default ``GUARD`` where a PSNR is asked of a calibration, which buys
            computed steps for prompts out of the ordinary, and none where a speed alone is.
        allow_mismatch: use calibrations of other models and noise levels too.

    Where neither calibrations nor the noise levels are known, a run is computed in full, and the trace says so.

    Raises ``ValueError`` unless ``speedup`` or ``psnr`` is set, or for settings out of range; when a run starts, for
    ``artifacts`` none of which is of its pipeline.
    """

    id: ClassVar[str] = "auto"

    speedup: float | None = None
    psnr: float | None = None
    learn: int = 0
    artifacts: tuple[str, ...] = ()
    folder: str | None = None
    guard: float | None = None
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "artifacts", tuple(map(str, self.artifacts)))
        object.__setattr__(self, "folder", None if self.folder is None else str(self.folder))
        asked = self.speedup is not None or self.psnr is not None
        require(asked, "Auto takes a speedup or a psnr, or both: Auto(speedup=2.5)")
        for name in ("speedup", "psnr"):
            value = getattr(self, name)
            good = value is None or (isinstance(value, (int, float)) and math.isfinite(value) and value > 0)
            require(good, f"{name} must be a number above 0, got {value!r}")
        require(self.speedup is None or self.speedup > 1, f"speedup must be above 1, got {self.speedup}")
        require(self.guard is None or self.guard >= 0, f"guard must be 0 or more, or None, got {self.guard!r}")
        require(self.learn >= 0 and int(self.learn) == self.learn, f"learn must be 0 or more runs, got {self.learn!r}")

    @classmethod
    def load(cls, artifact: str | Path, *args: Any, **overrides: Any) -> Auto:
        """``Auto`` with one calibration to choose budgets from.  Raises as ``artifacts.read`` does."""
        calibrated(artifact)
        return cls(*args, **{"artifacts": (str(artifact),), **overrides})

    @property
    def watching(self) -> float | None:
        """The guard of the forecasts that it chooses."""
        guard = self.guard if self.guard is not None else GUARD * (self.psnr is not None)
        return guard or None

    @property
    def stores(self) -> tuple[Store, ...]:
        return (VelocityHistory(CORRECTING),)  # which is as many as the guard needs

    @property
    def adaptive(self) -> bool:
        return False

    def start(self, run: RunInfo) -> Policy:
        raise ValueError("Auto chooses by the measured times of a pipeline: use it with vaccel.accelerate")

    def candidates(self, paths: list[str], num_steps: int, flow: Flow | None = None) -> list[Candidate]:
        """The candidate with the smallest predicted error of every budget, by ascending budget.

        Forecast calibrations are read at the levels of ``flow``; without it those of ``num_steps`` steps serve.
        """
        best: dict[int, Candidate] = {}
        forecasts = [known for path in paths if isinstance(known := calibrated(path), Calibration)]
        forecasts = [known.at(flow.levels) if flow is not None else known for known in forecasts]
        fidelity = next((known.fidelity for known in forecasts if known.fidelity is not None), None)
        if fidelity is None and forecasts:
            fidelity = calibration(shipped()).fidelity.scaled(forecasts[0].scale)
        for path in paths:
            for found in _of(path, num_steps, flow, fidelity, self.watching, self.allow_mismatch):
                if found.budget not in best or found.error < best[found.budget].error:
                    best[found.budget] = found
        return [best[budget] for budget in sorted(best)]

    def uncalibrated(self, num_steps: int, flow: Flow | None) -> list[Candidate]:
        """Of a pipeline that nothing is known of: forecasts by the prior, where its noise levels are known.

        Of few steps (``FEW`` or less, as distilled models have them) all are computed: each does much of the work, and
        nothing that was measured says which of them another model could do without.
        """
        if flow is None or num_steps < 2:
            return []
        known = calibration(shipped())
        plans, fidelity = known.at(flow.levels).plans(per="tensor"), known.fidelity
        return [
            Candidate(functools.partial(Forecast.prior, budget), budget, plan.predicted, fidelity, Forecast)
            for budget, plan in plans.items()
            if num_steps > FEW or budget == num_steps
        ]

    def reaching(self, candidates: list[Candidate]) -> Candidate | None:
        """The candidate with the smallest budget with which nineteen runs in twenty are expected to reach the PSNR."""
        if self.psnr is None:
            return None
        good = (c for c in candidates if c.psnr is not None and c.psnr[1] >= self.psnr)
        return next(good, None)


def calibrated(path: str | Path) -> Calibration | dict[str, Any]:
    """A Forecast calibration, or LeMiCa's data.  Raises as ``artifacts.read`` does for a file that is neither."""
    try:
        return calibration(path)
    except ValueError as error:
        try:
            return measured(path).data
        except ValueError as other:
            raise (other if f"not a {LeMiCa.id} artifact" not in str(other) else error) from None


def _of(
    path: str, num_steps: int, flow: Flow | None, fidelity: Fidelity | None, guard: float | None,
    allow_mismatch: bool,
) -> Iterator[Candidate]:  # fmt: skip
    """The candidates of one artifact for runs of ``num_steps`` steps; all budgets of it are solved for once."""
    known = calibrated(path)
    options = {"allow_mismatch": allow_mismatch}
    if isinstance(known, Calibration):
        known = known.at(flow.levels) if flow is not None else known
        if known.gram.num_steps != num_steps:
            return
        for budget, error in known.planned():
            make = functools.partial(Forecast.load, path, budget, guard=guard, **options)
            yield Candidate(make, budget, error, fidelity, Forecast, known.fitted, known.expected)
    elif known["num_steps"] == num_steps:
        found = measured(path)
        for budget, plan in found.plans().items():
            error = RMS_OF_MEAN * plan.predicted
            make = functools.partial(LeMiCa.load, path, budget, **options)
            yield Candidate(make, budget, error, fidelity, LeMiCa, found.fitted)
