"""Profiles MixCache (arXiv 2508.12691): how much each level's output changes between steps, and what reuse costs."""

from __future__ import annotations

import statistics
from collections import deque
from pathlib import Path
from typing import Any

import torch

from .. import ops
from ..cache import BlockState
from ..methods.mixcache import MixCache
from ..models import fingerprints
from .replay import Invocation, StandIn, StandInRun
from .samples import Progress, Samples, prompts_encoded_once, sample, silent, steps_of

#: Distance, in steps, of the changes that d1 and d2 are fitted to: the middle one of the cycle lengths.
WIDE = 3


def calibrate_mixcache(
    pipe: Any,
    prompts: list[str],
    path: Path,
    *,
    seeds: list[int] = (0,),
    call: dict[str, Any],
    candidates: tuple[int, ...] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measures the impacts I and thresholds; writes the artifact ``path`` after each sample and returns its data.

    Each sample is run twice in full.  The first run measures, for every level, the difference of its value at step
    t - 1 (what would be reused) from that at t: its mean mu over all steps, its standard deviation sigma over those
    after the first fifth.  The second adds Gaussian noise N(mu, sigma) to the level at every step; I is the relative
    L1 of the guided output from the undisturbed one: for blocks one number a step, for "step" and "cfg" the mean.
    theta is the mean of the guided output's change from step to step, once it has settled.  d1 and d2 are the terciles
    of its change over three steps from then on, so that each cycle length occurs.  (The paper takes the smallest and
    largest deviation from theta, "rounded as needed"; the smallest is close to zero, and no change falls below it.)

    Args:
        call: arguments of the pipeline's call, ``num_inference_steps`` among them.
        candidates: blocks to resume after; by default at a quarter, half and three quarters of the depth.

    Raises ``ValueError`` when ``path`` holds a calibration of something else, or a candidate does not exist.
    """
    header = header_of(pipe, call, candidates)
    samples = Samples(Path(path), header, prompts, list(seeds))
    chosen = tuple(header["candidates"])
    with prompts_encoded_once(pipe):
        return samples.fill(lambda prompt, seed: sample_of(pipe, prompt, seed, call, chosen), progress)


def header_of(pipe: Any, call: dict[str, Any], candidates: tuple[int, ...] | None) -> dict[str, Any]:
    """What all samples share.  Raises ``ValueError`` for a candidate that does not exist, and for too few steps."""
    steps_of(call)
    chosen = MixCache(candidates=candidates).keeps_states(len(StandIn(pipe, None).blocks))
    return fingerprints.header(MixCache.id, pipe, call, candidates=list(chosen))


@torch.no_grad()
def sample_of(pipe: Any, prompt: str, seed: int, call: dict[str, Any], candidates: tuple[int, ...]) -> dict[str, Any]:
    """One sample: the changes of the guided output, and the impact of every level at every step."""
    measured = _Measuring(pipe, candidates, call)
    with StandIn(pipe, measured):
        sample(pipe, prompt, seed, call)
    measured.finish()
    disturbed = _Disturbing(pipe, candidates, call, measured.noise(), torch.Generator().manual_seed(seed))
    with StandIn(pipe, disturbed):
        sample(pipe, prompt, seed, call)
    disturbed.finish()
    return {"changes": measured.changes, "wide_changes": measured.wide, "impacts": disturbed.impacts}


class _Run(StandInRun):
    """Computes every step, keeps the candidates' block states, and passes each finished step to ``measure``."""

    def __init__(self, pipe: Any, candidates: tuple[int, ...], arguments: dict[str, Any]):
        super().__init__()
        self.pipe, self.candidates, self.arguments = pipe, candidates, arguments
        self.outputs, self.scale = [], 1.0
        self.kept: dict[int, BlockState] = {}
        self.first: Invocation | None = None  # the step's first call

    def begin(self, index: int, call: Invocation) -> None:
        self._read_scale(call)  # some pipelines set it after a step's calls
        self.finish()
        self.outputs, self.first = [], call

    def take(self, index: int, call: Invocation) -> torch.Tensor:
        self._read_scale(call)
        kept = self._states(call) if call.branch == 0 else {}
        output = call.stage.large.recording(call.inputs, None, kept)
        self.outputs.append(output.clone())
        return output

    def _states(self, call: Invocation) -> dict[int, BlockState]:
        """Where the candidates' conditional block states go, by block."""
        if not self.kept:
            rows = len(call.x) - call.half

            def make(hidden: torch.Tensor, encoder: torch.Tensor | None) -> tuple:
                change = torch.zeros(rows, device=hidden.device)
                return torch.empty_like(hidden), None if encoder is None else torch.empty_like(encoder), change

            self.kept = {number: BlockState(make, call.half, len(call.x)) for number in self.candidates}
        return self.kept

    def finish(self) -> None:
        """Measures the step that is complete."""
        if self.first is None:
            return
        cond, uncond = self.outputs[0], None
        if self.first.batched:
            uncond, cond = cond.chunk(2)
        elif len(self.outputs) > 1:
            uncond = self.outputs[1]
        self.measure(self.first, cond, uncond)
        self.first = None

    def guided(self, call: Invocation, cond: torch.Tensor, uncond: torch.Tensor | None) -> torch.Tensor:
        if uncond is None:
            return cond
        return call.stage.large.guided(cond, uncond, self.scale, torch.empty_like(cond))

    def _read_scale(self, call: Invocation) -> None:
        """The current guidance scale; not every pipeline has it after its call."""
        self.scale = call.stage.large.family.guidance(self.pipe, call.stage.index, self.arguments)

    def measure(self, call: Invocation, cond: torch.Tensor, uncond: torch.Tensor | None) -> None:
        raise NotImplementedError


class _Measuring(_Run):
    """Differences of every level's values from those of the step before."""

    def __init__(self, pipe: Any, candidates: tuple[int, ...], arguments: dict[str, Any]):
        super().__init__(pipe, candidates, arguments)
        self.changes: list[float] = []
        self.wide: list[float] = []
        self.outputs_before: deque[torch.Tensor] = deque(maxlen=WIDE)
        self.differences: dict[str, list[tuple[float, float]]] = {}  # level -> (mean, standard deviation) of every step
        self.before: dict[str, torch.Tensor] = {}

    def measure(self, call: Invocation, cond: torch.Tensor, uncond: torch.Tensor | None) -> None:
        now = {"step": self.guided(call, cond, uncond)}
        if uncond is not None:
            now["cfg"] = uncond - cond
        now |= {str(number): state.hidden.clone() for number, state in self.kept.items()}
        if len(self.outputs_before) == WIDE:
            self.wide.append(float(ops.relative_l1(now["step"], self.outputs_before[0]).max()))
        self.outputs_before.append(now["step"])
        if self.before:
            self.changes.append(float(ops.relative_l1(now["step"], self.before["step"]).max()))
            for level, value in now.items():
                reused = (self.before[level] - value).double()
                self.differences.setdefault(level, []).append((reused.mean().item(), reused.std().item()))
        self.before = now

    def noise(self) -> dict[str, tuple[float, float]]:
        """(mu, sigma) by level."""
        found = {}
        for level, steps in self.differences.items():
            late = steps[len(steps) // 5 :]
            found[level] = statistics.fmean(m for m, _ in steps), statistics.fmean(s for _, s in late)
        return found


class _Disturbing(_Run):
    """The error of the guided output when noise is added to a level's value."""

    def __init__(self, pipe: Any, candidates: tuple[int, ...], arguments: dict[str, Any],
                 noise: dict[str, tuple[float, float]], generator: torch.Generator):  # fmt: skip
        super().__init__(pipe, candidates, arguments)
        self.noise, self.generator = noise, generator
        self.impacts: dict[str, list[float]] = {level: [] for level in noise}

    def measure(self, call: Invocation, cond: torch.Tensor, uncond: torch.Tensor | None) -> None:
        real = self.guided(call, cond, uncond)
        self._record("step", real, self._disturbed("step", real))
        if uncond is not None:
            self._record("cfg", real, self.guided(call, cond, cond + self._disturbed("cfg", uncond - cond)))
        large = call.stage.large
        inputs = large.rows(call.inputs, slice(call.half, None)) if call.batched else call.inputs
        for number in self.candidates:
            state = self.kept[number]
            _, encoder, change = state.tensors
            tensors = self._disturbed(str(number), state.hidden), encoder, change
            disturbed = BlockState(None, 0, len(change), tensors)
            other = large.resuming(inputs, number, {number: disturbed})
            self._record(
                str(number), real, self.guided(call, other, None if uncond is None else other + (uncond - cond))
            )

    def _disturbed(self, level: str, value: torch.Tensor) -> torch.Tensor:
        mu, sigma = self.noise[level]
        drawn = torch.randn(value.shape, generator=self.generator, dtype=torch.float32)
        return value + (mu + sigma * drawn).to(value)

    def _record(self, level: str, real: torch.Tensor, disturbed: torch.Tensor) -> None:
        self.impacts[level].append(float(ops.relative_l1(disturbed, real).max()))
