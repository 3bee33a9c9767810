"""Plain loops of MixCache and LeMiCa, written from their description alone, like ``oracle``: slow, nothing of vaccel.

Letters: ``F`` both branches computed, ``o`` the last output again (step level), ``g`` only the conditional branch
computed (cfg level), ``b`` only the blocks after a cached one computed (block level), ``r`` a residual reused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from oracle import Run, Solver, Task, margin, rel_l1
from oracle_models import Branches, evaluate, evaluate_stack, is_qwen
from torch import Tensor, nn

Key = str | int  # what a step may reuse: "step", "cfg" or the index of a block
State = tuple[Tensor, Tensor | None]  # what a block returns: hidden state, text state where there is one
States = dict[str, dict[int, State]]  # branch -> block -> state

LETTERS = {"step": "o", "cfg": "g", "block": "b"}


@dataclass
class Mix:
    """MixCache's parameters.

    Attributes:
        d1, d2: thresholds of the change between full steps; below ``d1`` the cycle has ``intervals[0]`` steps, from
            ``d2`` on ``intervals[2]``.
        candidates: zero-based block indices; the quarters of the depth, rounded down, if not given.
        fixed: the length of every cycle, instead of ``intervals``.
        impacts: "step" and "cfg" -> constant, "block" -> {block index: constant or one value per step}; 1 by default.
    """

    theta: float = 0.1
    d1: float = 0.05
    d2: float = 0.1
    intervals: tuple[int, int, int] = (4, 3, 2)
    levels: Sequence[str] = ("step", "cfg", "block")
    candidates: Sequence[int] | None = None
    block_branches: str = "cond"
    penalty: bool = True
    fixed: int | None = None
    impacts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert set(self.levels) <= set(LETTERS)
        assert self.block_branches in ("cond", "both")
        assert self.d1 <= self.d2
        assert list(self.intervals) == sorted(self.intervals, reverse=True)

    def blocks(self, depth: int) -> list[int]:
        if "block" not in self.levels:
            return []
        return sorted(set([depth * k // 4 for k in (1, 2, 3)] if self.candidates is None else self.candidates))

    def impact(self, key: Key, step: int) -> float:
        if isinstance(key, str):
            return self.impacts.get(key, 1.0)
        value = self.impacts.get("block", {}).get(key, 1.0)
        return value[step] if isinstance(value, Sequence) else value

    def interval(self, change: float) -> int:
        if self.fixed is not None:
            return self.fixed
        return self.intervals[0 if change < self.d1 else 1 if change < self.d2 else 2]


@dataclass
class Step:
    """What happened at one step.

    Attributes:
        key: what was reused, ``None`` at a full step.
        N: the cycle length in force, ``None`` in the warm-up.
        forced: a step that the cycle meant to be cached and that was computed because no level could be chosen.
        P: of every key that could be chosen for this step, largest over the samples; empty if there was no choice.
        D: of every key, per sample, as known at the end of this step.
        D_full: at a full step that has one before it, per sample.
        renewed: the keys whose D got a new value at this step.
        margin: of the closest decision that made this step what it is.
    """

    letter: str = "F"
    key: Key | None = None
    N: int | None = None
    forced: bool = False
    P: dict[Key, float] = field(default_factory=dict)
    D: dict[Key, list[float]] = field(default_factory=dict)
    D_full: list[float] | None = None
    renewed: set[Key] = field(default_factory=set)
    margin: float = math.inf

    @property
    def level(self) -> str | None:
        return level_of(self.key) if self.key is not None else None


@dataclass
class MixRun(Run):
    steps: list[Step] = field(default_factory=list)


def level_of(key: Key) -> str:
    return key if isinstance(key, str) else "block"


def gap(value: float, threshold: float) -> float:
    return math.inf if math.isinf(threshold) else margin(value, threshold)


def again(task: Task) -> Task:
    """The same run from its start: a scheduler and generators of its own."""
    g = task.generator
    if isinstance(g, torch.Generator):
        g = g.clone_state()
    elif g is not None:
        g = [one.clone_state() for one in g]
    return replace(task, scheduler=copy.deepcopy(task.scheduler), generator=g)


# --- inside the model -----------------------------------------------------------------------------------------------


def block_list(model: nn.Module) -> nn.ModuleList:
    return model.blocks if hasattr(model, "blocks") else model.transformer_blocks


def state_of(model: nn.Module, returned: Tensor | tuple[Tensor, Tensor]) -> State:
    """The state in what a block returned: Wan's blocks know no text state, Qwen-Image's return it first."""
    if isinstance(returned, Tensor):
        return returned, None
    return returned[::-1] if is_qwen(model) else returned


def returned_as(model: nn.Module, state: State) -> Tensor | tuple[Tensor, Tensor]:
    """What a block returns that leaves this state."""
    hidden, text = state
    if text is None:
        return hidden
    return (text, hidden) if is_qwen(model) else (hidden, text)


class Given(nn.Module):
    """Stands for a block and everything before it: returns what the block would."""

    def __init__(self, returned: Tensor | tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor]:
        return self.returned


@contextmanager
def observed(model: nn.Module, candidates: Iterable[int], begin: int | None, given: State | None) -> Iterator[dict]:
    """Blocks up to ``begin`` replaced by its given state; yields {block: state} of the candidates that then ran."""
    blocks, seen, hooks = block_list(model), {}, []
    real = list(blocks)
    first = 0 if begin is None else begin + 1

    def watch(k: int) -> None:
        def hook(module: nn.Module, args: Any, out: Tensor | tuple[Tensor, Tensor]) -> None:
            hidden, text = state_of(model, out)
            seen[k] = hidden.clone(), None if text is None else text.clone()

        hooks.append(blocks[k].register_forward_hook(hook))

    try:
        for k in range(first):
            blocks[k] = Given(returned_as(model, given))
        for k in candidates:
            if k >= first:
                watch(k)
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for k, block in enumerate(real):
            blocks[k] = block


def split(state: State, rows: int) -> list[State]:
    hidden, text = state
    texts = [None] * rows if text is None else text.chunk(rows)
    return list(zip(hidden.chunk(rows), texts, strict=True))


def join(states: Sequence[State]) -> State:
    texts = [text for _, text in states]
    return torch.cat([hidden for hidden, _ in states]), None if texts[0] is None else torch.cat(texts)


def compute(
    task: Task, x: Tensor, t: Tensor, names: Sequence[str], candidates: Iterable[int], begin: int | None, cache: States
) -> tuple[Branches, States]:
    """The branches' outputs, from the latents or from the cached states after block ``begin``, and the states seen."""
    outs, states = {}, {}
    for group in [names] if task.batched else [(name,) for name in names]:
        given = None if begin is None else join([cache[name][begin] for name in group])
        with observed(task.large, candidates, begin, given) as seen:
            outs.update(evaluate(task.large, task, x, t, group))
        for row, name in enumerate(group):
            states[name] = {k: split(state, len(group))[row] for k, state in seen.items()}
    return outs, states


# --- MixCache -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mixcache(task: Task, config: Mix) -> MixRun:
    """MixCache as METHODS.md section 3 has it and, where that is silent, the paper.

    Batch: one action for all its samples, the most cautious sample's.  The warm-up ends when all samples have
    D_step < theta at one and the same step; the cycle length is the smallest over the samples; each level's P is the
    largest over the samples, and the argmin is taken over those maxima.

    Readings of what is left open:

    * "Really computed" is, for an output, that the branches it is made of ran from the latents on (a full step; both
      of them for the guided output and for the cfg level); for a block's state, that the block ran, also if from a
      cached state ("in block mode only candidates j > i have new values": these and no other level).  The operands
      are those of eq. 5: steps t and t-1 themselves, not the newest cached ones.  So D_step is renewed at a full step
      after a full step, D_cfg at full steps, D_block_j where the conditional branch ran block j at t-1 and at t.
    * delta, likewise, is refreshed at full steps only: with ``block_branches="both"`` a block step yields both
      outputs, but of states that can be of different age.
    * The state caches take whatever ran, and per branch: a cfg step refreshes the conditional ones only.
    * The cycle counts from the last full step (Algorithm 1's counter: the last warm-up step is its 0, so the step
      after it is cached for N > 1).  That step's D_full, against the full step before it, gives the first N: METHODS
      says "at each full step".  A full step that comes because no level can be chosen is like any other: it sets N,
      starts a cycle and lifts the penalty ("interval" is the way between two full computations).
    * P of step i is D_{i-1} I_{i-1}: eq. 7 has one t for both, and the choice is for the next step.  A D that is kept
      from an earlier step is weighed with I_{i-1} too.
    * A granularity is a level: the penalty bars all blocks after a block step, not one index.  With a single level
      and the penalty on, every second cached step becomes a full one, then.
    * No step but the first is full for being where it is; the last one may be cached.
    * D_block is of the hidden state alone; what is replaced is the text state as well.
    * Guided outputs are compared as they were used, each with the scale of its own step; an ``o`` step guides the
      last pair of branch outputs with the scale of its own.
    * Ties go to the step level, then cfg, then the earlier block: the order in Algorithm 1's line 24.
    """
    task = again(task)
    solver, x = Solver(task), task.latents
    run = MixRun(x, [])
    guided_twice = task.uncond is not None
    candidates = config.blocks(len(block_list(task.large)))
    keys: list[Key] = [k for k in ("step", "cfg") if k in config.levels and (k == "step" or guided_twice)] + candidates

    D: dict[Key, Tensor] = {}  # noqa: N806
    cache: States = {name: {} for name in task.names}
    last: Branches = {}
    delta: Tensor | None = None
    last_full: Tensor | None = None  # guided output of the last full step
    guided_before: Tensor | None = None  # guided output of the step before, if that one was full
    seen_before: dict[int, State] = {}  # conditional states of the step before
    barred: str | None = None
    warm, n, count = False, 1, 0
    gaps: list[float] = []  # of decisions that bear on the step to come

    for i, t in enumerate(solver.timesteps):
        row = Step()
        if warm:
            row.N, count = n, (count + 1) % n
            if count:
                allowed = [k for k in keys if k in D and not (config.penalty and level_of(k) == barred)]
                row.P = {k: D[k].max().item() * config.impact(k, i - 1) for k in allowed}
                row.forced = not allowed
                if allowed:
                    row.key = min(allowed, key=row.P.get)
                    gaps += [gap(row.P[k], row.P[row.key]) for k in allowed if k != row.key]
        row.letter = LETTERS[row.level] if row.key is not None else "F"
        row.margin = min(gaps, default=math.inf)
        run.margins += gaps
        gaps = []

        if row.key is None:
            out, seen = compute(task, x, t, task.names, candidates, None, cache)
        elif row.level == "step":
            out, seen = dict(last), {}
        elif row.level == "cfg":
            out, seen = compute(task, x, t, ("cond",), candidates, None, cache)
            out["uncond"] = out["cond"] + delta
        else:
            names = task.names if config.block_branches == "both" else ("cond",)
            out, seen = compute(task, x, t, names, candidates, row.key, cache)
            if guided_twice and "uncond" not in out:
                out["uncond"] = out["cond"] + delta
        guided = task.guide(out, t)

        # What is known at the end of this step.
        full = row.key is None
        if full and guided_before is not None:
            D["step"] = rel_l1(guided, guided_before)
            row.renewed.add("step")
        if full and guided_twice:
            D["cfg"] = rel_l1(out["uncond"], out["cond"])
            row.renewed.add("cfg")
            delta = out["uncond"] - out["cond"]
        seen_now = seen.get("cond", {})
        for k in sorted(seen_now.keys() & seen_before.keys()):
            D[k] = rel_l1(seen_now[k][0], seen_before[k][0])
            row.renewed.add(k)
        for name, states in seen.items():
            cache[name].update(states)

        if full and last_full is not None:
            change = rel_l1(guided, last_full)
            row.D_full = change.tolist()
            if not warm:
                gaps.append(gap(D["step"].max().item(), config.theta))
                warm = bool((D["step"] < config.theta).all())
            n = min(config.interval(c) for c in row.D_full)
            if warm and config.fixed is None:
                gaps.append(min(gap(change.max().item(), d) for d in (config.d1, config.d2)))
        if full:
            count, last_full = 0, guided
        barred = row.level
        guided_before = guided if full else None
        seen_before, last = seen_now, out

        row.D = {k: d.tolist() for k, d in D.items()}
        run.letters.append(row.letter)
        run.steps.append(row)
        x = solver.step(i, guided, x)
    run.latents = x
    return run


# --- LeMiCa ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def scheduled(task: Task, full_steps: Iterable[int], reuse: str = "blocks") -> Run:
    """Full at the given steps; between them the residual of the last full one, per branch.

    Args:
        reuse: "blocks", the residual of the block stack, with embedding and head computed at the step itself, or
            "residual", v - x of the whole model.
    """
    assert reuse in ("blocks", "residual")
    task, chosen = again(task), set(full_steps)
    assert 0 in chosen
    solver, x = Solver(task), task.latents
    run = Run(x, [])
    residuals: Branches = {}
    for i, t in enumerate(solver.timesteps):
        full = i in chosen
        run.letters.append("F" if full else "r")
        if reuse == "blocks":
            out, residuals = evaluate_stack(task.large, task, x, t, None if full else residuals)
        elif full:
            out = evaluate(task.large, task, x, t, task.names)
            residuals = {name: out[name] - x for name in task.names}
        else:
            out = {name: x + residuals[name] for name in task.names}
        x = solver.step(i, task.guide(out, t), x)
    run.latents = x
    return run


def lemica_edge(task: Task, i: int, j: int, reuse: str = "blocks") -> float:
    """Mean |x0_cached - x0_full| over the whole batch, if the steps between i and j, alone, reuse what i computed.

    Both runs are done from the start, with a scheduler and generators of their own.
    """
    every = set(range(task.steps))
    assert 0 <= i < j < task.steps
    cached = scheduled(task, every - set(range(i + 1, j)), reuse).latents
    return (cached.double() - scheduled(task, every, reuse).latents.double()).abs().mean().item()
