"""LeMiCa (arXiv 2511.00090): a fixed schedule from the final errors of all stretches of skipped steps."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..cache import Store
from ..planning import artifacts
from ..planning.file_state import FileState, state
from ..planning.paths import Plans
from ..planning.schedules import Edge, check_size, solve_units
from ..planning.schema import step_count, step_list
from .base import Method, Policy, RunInfo, require
from .schedule import Reuse, Schedule


def parsed_steps(text: str) -> tuple[int, ...]:
    """The steps of a list such as "0-3,5"."""
    spans = [part.partition("-") for part in text.split(",")]
    return tuple(i for first, _, last in spans for i in range(int(first), int(last or first) + 1))


#: model -> (T, budget -> full steps): what the paper's authors published.
PUBLISHED: dict[str, tuple[int, dict[int, str]]] = {
    "wan2.1-t2v-14b": (50, {
        25: "0-11,13,15,18,21,25,29,34,38,42,45,47-49",
        20: "0-9,11,14,18,23,29,36,42,46,48,49",
        17: "0-7,9,12,16,22,29,36,43,47,49",
        14: "0-5,7,10,17,24,31,38,45,49",
    }),
    "wan2.1-t2v-1.3b": (50, {
        25: "0-12,14,16,18,21,24,29,35,40,44,47-49",
        20: "0-9,11,13,16,20,26,33,40,45,48,49",
        17: "0-8,10,13,18,25,32,39,46,49",
        14: "0-5,7,10,16,23,30,37,44,49",
    }),
    "wan2.1-i2v": (40, {
        25: "0-10,12,14,16,18,21,24,27,30,32,34,36-39",
        20: "0-6,8,10,12,15,18,21,25,29,32,35,37-39",
        17: "0-5,7,9,12,15,19,24,29,33,36,38,39",
        14: "0-4,6,8,11,15,22,29,34,37,39",
    }),
    "hunyuanvideo-1.5": (50, {
        25: "0-13,15,17,19,21,24,28,33,39,45,48,49",
        20: "0-11,13,15,18,22,28,36,44,49",
        15: "0-6,8,10,13,17,25,33,41,49",
        10: "0,1,3,5,9,17,25,33,41,49",
    }),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LeMiCa(Method):
    """Lexicographic minimax path caching: a fixed schedule whose largest error is as small as possible.

    Full at ``full_steps``, the residual of the last full step elsewhere.  The steps come from a calibration, as in
    ``LeMiCa.load("lemica.json", budget=20)``, or are published: ``LeMiCa.preset("wan2.1-t2v-14b", budget=20)``.

    Args:
        full_steps: steps computed in full, the first and the last among them (arXiv 2511.00090, section 3.3).
        num_steps: T of the runs it is for; a run with another number of steps is refused.
        reuse: what replaces the other steps: "blocks" (x + the residual of the block stack, head recomputed, as
            the paper has it), or at output level "residual", "output" or "forecast" (``vaccel.Schedule``).
        fitted: the model and scheduler of the calibration; another pipeline is refused, unless ``allow_mismatch``.

    Raises ``ValueError`` for steps out of range, or without the first and last.
    """

    id: ClassVar[str] = "lemica"
    presets: ClassVar = {
        f"{model}-{budget}": {"full_steps": parsed_steps(text), "num_steps": steps}
        for model, (steps, budgets) in PUBLISHED.items()
        for budget, text in budgets.items()
    }

    full_steps: tuple[int, ...]
    num_steps: int
    reuse: Reuse = "blocks"
    fitted: artifacts.Fitted = ()
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        step_count(self.num_steps)
        object.__setattr__(self, "full_steps", step_list(self.full_steps))
        object.__setattr__(self, "fitted", tuple((name, value) for name, value in self.fitted))
        _ = self.schedule  # checks the range
        left = next((i for i in (0, self.num_steps - 1) if i not in self.full_steps), None)
        require(left is None, f"the first and the last step must be computed: full_steps leave {left} out")

    @classmethod
    def preset(cls, model: str, *, budget: int | None = None, **overrides: Any) -> LeMiCa:
        """The published full steps for a model and a budget (how many of them), such as "wan2.1-t2v-14b", 20.

        Raises ``ValueError`` for a model or a budget that nothing is published for.
        """
        if budget is None and model in PUBLISHED:
            known = ", ".join(map(str, PUBLISHED[model][1]))
            raise ValueError(f"LeMiCa.preset({model!r}) needs a budget: published are {known} full steps")
        return super().preset(model if budget is None else f"{model}-{budget}", **overrides)

    @classmethod
    def load(
        cls, artifact: str | Path, budget: int | None = None, *, objective: str = "leximax", **overrides: Any
    ) -> LeMiCa:
        """The best schedule with exactly ``budget`` full steps, from the errors that a calibration measured.

        Args:
            objective: "leximax" (the paper's: errors in descending order, compared one by one) or "sum".

        Raises ``ValueError`` for a file that is no LeMiCa artifact, or for a budget that it has no path for.
        """
        found = measured(artifact)
        plans = found.plans(objective)
        if budget not in plans:
            raise ValueError(
                f"LeMiCa.load needs a budget, how many of {found.num_steps} steps are computed: "
                f"{artifact} can make {min(plans)} to {max(plans)}, got {budget!r}"
            )
        return cls(
            plans[budget].full_steps, found.num_steps, **{"reuse": found.reuse, "fitted": found.fitted, **overrides}
        )

    @property
    def schedule(self) -> Schedule:
        """The equivalent ``Schedule``."""
        return Schedule(self.full_steps, num_steps=self.num_steps, reuse=self.reuse)

    @property
    def stores(self) -> tuple[Store, ...]:
        return self.schedule.stores

    @property
    def adaptive(self) -> bool:
        return False

    def start(self, run: RunInfo) -> Policy:
        return self.schedule.start(run)


class Measured:
    """The contents of a LeMiCa artifact: the error of every edge, and the best schedules by them.

    Args:
        data: the artifact, as ``artifacts.read`` returns it.

    Attributes:
        data: the artifact.
        num_steps, reuse, fitted: as ``LeMiCa`` takes them.

    Raises ``ValueError`` for more edges than are solved.
    """

    def __init__(self, data: dict[str, Any]):
        self.data, self.num_steps, self.fitted = data, data["num_steps"], artifacts.fitted(data)
        self.reuse = "residual" if data["reuse"] == "output" else data["reuse"]  # its name in earlier calibrations
        found = edges(data)
        check_size(self.num_steps, len(found))
        rows = np.array([(e.start, e.end, e.error) for e in found], np.float64).reshape(-1, 3)
        self._graph = rows[:, 0].astype(np.int32), rows[:, 1].astype(np.int32), rows[:, 2]
        self._plans: dict[str, Plans] = {}

    def plans(self, objective: str = "leximax") -> Plans:
        """The best schedule of every budget and its edges' errors, all from one solve; solved once an objective.

        Raises ``ValueError`` for an unknown objective.
        """
        if objective not in self._plans:
            start, end, error = self._graph
            paths = solve_units(self.num_steps, start, end, error, np.array([self.num_steps - 1]), objective=objective)
            self._plans[objective] = Plans(paths, end, error)
        return self._plans[objective]


def measured(path: str | Path) -> Measured:
    """A LeMiCa artifact, cached until the file changes.  Raises as ``artifacts.read`` and ``Measured`` do."""
    return _measured(str(path), state(path))


@functools.lru_cache(maxsize=8)
def _measured(path: str, found: FileState) -> Measured:
    try:
        return Measured(artifacts.read(path, LeMiCa.id))
    except ValueError as error:
        raise ValueError(error if path in str(error) else f"{path}: {error}") from None


def edges(artifact: dict[str, Any]) -> list[Edge]:
    """The graph of an artifact: an edge's error is the mean over the samples; edges not measured in all are left out.

    Edges between neighbouring steps skip nothing and have error 0.  Unfinished samples are used only where there are no
    finished ones.
    """
    every = artifact["samples"].values()
    samples = [s["errors"] for s in [s for s in every if s.get("done")] or every]
    found = [Edge(i, i + 1, 1, 0.0) for i in range(artifact["num_steps"] - 1)]
    for name in samples[0] if samples else ():
        measured = [s[name] for s in samples if name in s]
        if len(measured) == len(samples):
            start, end = map(int, name.split("-"))
            found.append(Edge(start, end, 1, math.fsum(measured) / len(samples)))
    return sorted(found)
