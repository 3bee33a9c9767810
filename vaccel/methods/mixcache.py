"""MixCache: reuse whole outputs, the guidance delta or the state after a block, whichever harms least."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import torch

from ..actions import Action, Full, Guidance, Output, Resume
from ..cache import BlockStates, GuidanceDelta, LastOutput, Store
from ..planning import artifacts
from ..signals import BlockChanges, Branches, Prediction, Signal
from .base import Method, Observation, Policy, RunInfo, Step, require, require_threshold

#: Steps a cycle (arXiv 2508.12691, eq. 6) where the last two computed outputs differ by less than d1, d2, or more.
INTERVALS = {"acc": (4, 3, 2), "eff": (5, 4, 3)}
LEVELS = ("step", "cfg", "block")


@dataclasses.dataclass(frozen=True)
class MixCache(Method):
    """Three granularities of caching, the trigger and the choice among them adaptive (arXiv 2508.12691, Algorithm 1).

    Full steps until the guided output changes by less than ``theta`` (relative L1); then cycles of one full step and
    N - 1 cached ones, N from the change between the last two full steps.  A cached step takes the level with the
    smallest P = D I: D how much the level's values changed when last really computed, I how much such a change harms.

    Args:
        theta: the change of the output that ends the warm-up.
        d1, d2: the changes at which N falls.
        intervals: "acc" (4, 3, 2), "eff" (5, 4, 3), or three lengths of your own.
        levels: which of "step", "cfg" and "block" may be chosen.
        candidates: blocks that a step may resume after; by default at a quarter, half and three quarters of the depth
            (10, 20 and 30 of 40).
        block_branches: whether resuming computes the conditional branch alone, the other following by the cached
            delta, or both from their own states.
        penalty: the level used at one step is barred at the next; a full step lifts it.
        interval: a fixed N.
        step_impact, cfg_impact: I of these levels; ``vaccel calibrate mixcache`` measures them.
        block_impacts: a candidate's I at every step, a tuple each.
        fitted, allow_mismatch: the model and scheduler of the calibration; others are refused, or allowed.

    D of "step" is of the guided output, needs two full steps in a row and else stays as it was; of "cfg" it is the
    relative L1 of the unconditional from the conditional output, of a block that of the conditional state.  In a batch
    the largest value decides.  Raises ``ValueError`` for settings that do not fit.
    """

    id: ClassVar[str] = "mixcache"
    records: ClassVar = {
        "D full": ("change of the output between computed steps; the warm-up ends below theta", "theta"),
        "D": ("change of what the level reuses, when it was last computed", ""),
        "P": ("how much the level would harm: the one with the least is taken", ""),
        "interval": ("steps from one computed step to the next", ""),
    }
    presets: ClassVar = {
        "wan2.1-t2v-14b": {"candidates": (10, 20, 30)},
        "hunyuanvideo": {},
        "cogvideox-5b": {"d1": 0.3, "d2": 0.4},
    }

    theta: float = 0.1
    d1: float = 0.05
    d2: float = 0.1
    intervals: tuple[int, ...] | str = "acc"
    levels: tuple[str, ...] = LEVELS
    candidates: tuple[int, ...] | None = None
    block_branches: Literal["cond", "both"] = "cond"
    penalty: bool = True
    interval: int | None = None
    step_impact: float = 1.0
    cfg_impact: float = 1.0
    block_impacts: tuple[tuple[float, ...], ...] = ()
    fitted: artifacts.Fitted = ()
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        for name in ("theta", "d1", "d2"):
            require_threshold(name, getattr(self, name))
        require(self.d1 <= self.d2, f"d1 must not be above d2, got {self.d1} and {self.d2}")
        named = isinstance(self.intervals, str)
        lengths = INTERVALS.get(self.intervals) if named else tuple(self.intervals)
        good = lengths is not None and len(lengths) == 3 and all(isinstance(n, int) and n >= 1 for n in lengths)
        require(good, f"intervals must be 'acc', 'eff' or three lengths >= 1, got {self.intervals!r}")
        object.__setattr__(self, "levels", tuple(x for x in LEVELS if x in self.levels))
        require(len(self.levels) > 0, f"levels must name some of {LEVELS}")
        require(
            self.block_branches in ("cond", "both"), f"block_branches is 'cond' or 'both', not {self.block_branches!r}"
        )
        require(self.interval is None or self.interval >= 1, f"interval must be >= 1, got {self.interval}")
        numbers = [self.step_impact, self.cfg_impact, *(i for row in self.block_impacts for i in row)]
        require(all(math.isfinite(i) and i >= 0 for i in numbers), "impacts must be finite numbers >= 0")
        object.__setattr__(self, "fitted", tuple((name, value) for name, value in self.fitted))

    @property
    def lengths(self) -> tuple[int, ...]:
        return INTERVALS[self.intervals] if isinstance(self.intervals, str) else tuple(self.intervals)

    @property
    def stores(self) -> tuple[Store, ...]:
        states = (BlockStates(self.candidates, self.block_branches),) if "block" in self.levels else ()
        return (LastOutput(), GuidanceDelta(), *states)

    @property
    def watches(self) -> tuple[type[Signal], ...]:
        return (Prediction, Branches, BlockChanges)

    def outside(self) -> Method:
        """Without its lowest level."""
        upper = tuple(level for level in self.levels if level != "block")
        return super(MixCache, dataclasses.replace(self, levels=upper) if upper else self).outside()

    def keeps_states(self, depth: int) -> tuple[int, ...]:
        """Raises ``ValueError`` for a candidate that the model has no block for."""
        if self.candidates is None:
            return tuple(sorted({k * depth // 4 for k in (1, 2, 3)}))
        outside = [c for c in self.candidates if not 0 <= c < depth]
        require(not outside, f"MixCache: candidates {outside} are no blocks of a model that has {depth}")
        return tuple(sorted(set(self.candidates)))

    def keeps(self, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mixcache.last": sample}

    def start(self, run: RunInfo) -> Policy:
        candidates = self.keeps_states(run.depth) if "block" in self.levels else ()
        rows = {len(row) for row in self.block_impacts} - {1}
        fits = (
            not candidates
            or not self.block_impacts
            or (len(self.block_impacts) == len(candidates) and rows <= {run.num_steps})
        )
        require(fits, f"block_impacts must be one row for each of blocks {candidates}, of {run.num_steps} steps")
        return _Policy(self, run, candidates)


class _Policy(Policy):
    """Algorithm 1.  Values D are kept as lists, one number a sample."""

    def __init__(self, config: MixCache, run: RunInfo, candidates: tuple[int, ...]):
        self.config, self.buffers, self.full = config, run.buffers, Full()
        levels: dict[str | int, Action] = {"step": Output(), "cfg": Guidance()}
        blocks = {c: Resume(block=c, branches=config.block_branches) for c in candidates}
        self.actions = {x: a for x, a in levels.items() if x in config.levels} | blocks
        self.candidates = candidates
        self.distance: dict[str | int, list[float]] = {}  # D by level or block
        self.warm, self.count, self.interval = False, 0, config.lengths[-1]
        self.barred: type[Action] | None = None
        self.last: torch.Tensor | None = None  # the last full step's guided output
        self.last_full = -1

    def decide(self, step: Step) -> Action:
        if not self.warm:
            return self.full
        self.count = (self.count + 1) % self.interval
        if self.count == 0:
            return self.full
        metrics, chosen, least = step.metrics, None, math.inf
        metrics["interval"] = self.interval
        for level, action in self.actions.items():
            if level not in self.distance or type(action) is self.barred:
                continue
            weighed = max(self.distance[level]) * self.impact(level, step.index - 1)
            metrics[f"P {level}"] = weighed
            if chosen is None or weighed < least:
                chosen, least = action, weighed
        return self.full if chosen is None else chosen  # nothing that may be chosen

    def impact(self, level: str | int, index: int) -> float:
        if level == "step":
            return self.config.step_impact
        if level == "cfg":
            return self.config.cfg_impact
        if not self.config.block_impacts:
            return 1.0
        row = self.config.block_impacts[self.candidates.index(level)]
        return row[index if len(row) > 1 else 0]

    def reshaped(self) -> None:
        self.last, self.distance = None, {}

    def observe(self, step: Step, seen: Observation) -> None:
        asked: dict[str | int, torch.Tensor] = dict(seen.block_changes)
        full = seen.action.is_full
        if full:
            cond, uncond = seen.branches
            if uncond is not None:
                asked["cfg"] = step.ops.relative_l1(uncond, cond)
            if self.last is not None and self.last.shape == seen.prediction.shape:
                asked["full"] = step.ops.relative_l1(seen.prediction, self.last)
            self.last = self.buffers.keep("mixcache.last", seen.prediction)
        if asked:  # one copy to the host for all levels
            values = self.buffers.read("mixcache.distances", torch.stack(list(asked.values()))).tolist()
            for level, value in zip(asked, values, strict=True):
                step.metrics[f"D {level}"] = value
                if level == "full":
                    self.measured(step.index, value)
                else:
                    self.distance[level] = value
        self.barred = None if full or not self.config.penalty else type(seen.action)
        if full:
            self.count, self.last_full = 0, step.index

    def measured(self, index: int, change: list[float]) -> None:
        """What follows from the change between the last two full steps."""
        if self.last_full == index - 1:
            self.distance["step"] = change
        if not self.warm:
            self.warm = all(d < self.config.theta for d in change)
        largest = max(change)
        long, middle, short = self.config.lengths
        scaled = long if largest < self.config.d1 else middle if largest < self.config.d2 else short
        self.interval = self.config.interval or scaled
