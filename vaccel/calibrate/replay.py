"""Replays of a recorded run: its outputs up to some step, then reused residuals, then computed steps to the end.

The pipeline itself runs, with the recorded outputs in place of the model's until the first reused step.  So a replay is
exact with any scheduler, its history, noise and guidance included, and needs forwards only after the reused steps.
Several replays whose reused steps end at the same step are computed as one batch.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ..cache.block_residual import Kept
from ..engine.trace import Trace
from ..integrations.diffusers.scope import Scope
from ..integrations.diffusers.session import Session
from ..methods import Schedule
from ..models import find
from ..models.call import Stage
from ..models.denoisers import main_denoiser
from . import samples

#: What skipped steps reuse, by the names of ``vaccel.Schedule``; the measured errors hold for it alone.
Reuse = Literal["blocks", "residual"]
Tails = Literal["exact", "coarse", "small", "none"]


class Stretch(NamedTuple):
    """Steps ``start`` and ``end`` are computed, those between reuse a residual."""

    start: int
    end: int


class Record(NamedTuple):
    """A run computed in full: outputs [T][calls a step] of [rows, ...], and its result [1, ...]."""

    outputs: list[list[torch.Tensor]]
    final: torch.Tensor


class Invocation(NamedTuple):
    """One call of the transformer, as a ``StandInRun`` receives it."""

    stage: Stage
    branch: int
    inputs: Any
    x: torch.Tensor
    batched: bool

    @property
    def half(self) -> int:
        """First row of the conditional branch."""
        return len(self.x) // 2 if self.batched else 0


class StandInRun:
    """Base class of runs that replace the engine's: ``take`` returns the output of every call."""

    def __init__(self) -> None:
        self.index, self.calls, self.num_steps = -1, 0, 0
        self.kinds: tuple[str, ...] = ()
        self.method, self.trace = None, Trace({}, 0)

    def call(
        self, index: int, stage: Stage, inputs: Any, x: torch.Tensor, batched: bool = False, condition: Any = None
    ) -> torch.Tensor:
        branch = self.calls if index == self.index else 0
        call = Invocation(stage, branch, inputs, x, batched)
        if branch == 0:
            self.begin(index, call)
            self.index, self.calls = index, 0
        self.calls += 1
        return self.take(index, call)

    def begin(self, index: int, call: Invocation) -> None:
        """Step ``index`` begins."""

    def hold_guidance(self) -> None:
        """Guidance may change from now on."""

    def only_looked(self, stage: Stage) -> None:
        """The model was run to see how its answers lie: one forward more than the calibration asked for."""

    def close(self) -> None:
        """The pipeline's call is over."""

    def take(self, index: int, call: Invocation) -> torch.Tensor:
        raise NotImplementedError


class _Recording(StandInRun):
    """Computes every step and keeps the model's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[list[torch.Tensor]] = []

    def begin(self, index: int, call: Invocation) -> None:
        self.outputs.append([])

    def take(self, index: int, call: Invocation) -> torch.Tensor:
        output = call.stage.large.full(call.inputs)
        self.outputs[-1].append(output.clone())
        return output


class _StopReplay(Exception):  # noqa: N818 (it is no error)
    """Ends a pipeline's run early, where the rest of it is not needed."""


class _Replaying(StandInRun):
    """A batch of replays, one row a stretch; all stretches end at the same step."""

    def __init__(self, replayer: Replayer, record: Record, stretches: Sequence[Stretch]):
        super().__init__()
        self.replayer, self.record, self.stretches = replayer, record, stretches
        self.end = stretches[0].end
        self.entered: torch.Tensor | None = None  # the latents that enter step ``end``, [rows, ...]
        self._tail: dict[int, torch.Tensor] = {}  # residuals of a coarse tail, by branch

    def take(self, index: int, call: Invocation) -> torch.Tensor:
        if index >= self.end:
            return self._tail_call(index, call)
        rows, copies = len(call.x), len(self.stretches)
        self._keep_residuals(index, call)
        output = self.record.outputs[index][call.branch].repeat_interleave(copies, dim=0)
        reusing = [r for r in range(rows) if self.stretches[r % copies].start < index]
        if reusing:
            output[reusing] = self._reused(call, reusing)
        return output

    def _keep_residuals(self, index: int, call: Invocation) -> None:
        """Keeps the residuals of a step where a stretch begins; its row still equals the recorded run there."""
        copies, residuals = len(self.stretches), self.replayer.residuals
        for m, stretch in enumerate(self.stretches):
            key = (index, call.branch)
            if stretch.start != index or stretch.end - index < 2 or key in residuals:
                continue
            rows = list(range(m, len(call.x), copies))
            if self.replayer.reuse == "residual":
                residuals[key] = self.record.outputs[index][call.branch] - call.x[rows]
            else:
                residual = Kept()
                call.stage.large.recording(call.stage.large.rows(call.inputs, rows), residual, {})
                residuals[key] = residual.buffer
                self.replayer.stored += len(rows)
        while len(residuals) > self.replayer.window:
            residuals.popitem(last=False)

    def _reused(self, call: Invocation, rows: list[int]) -> torch.Tensor:
        """The output of some rows, each from the residual of its stretch's start."""
        copies = len(self.stretches)
        kept = [self.replayer.residuals[self.stretches[r % copies].start, call.branch] for r in rows]
        # With batched guidance a residual has the rows of both branches.
        residual = torch.stack([k[r // copies] for r, k in zip(rows, kept, strict=True)])
        if self.replayer.reuse == "residual":
            return call.x[rows] + residual
        return call.stage.large.reusing(call.stage.large.rows(call.inputs, rows), residual)

    def _tail_call(self, index: int, call: Invocation) -> torch.Tensor:
        tails, stage = self.replayer.tails, call.stage
        if index == self.end and call.branch == 0:
            self.entered = call.x[call.half :].clone()
            if tails == "none":
                raise _StopReplay
        if tails == "small":
            self.replayer.small_forwards += len(call.x)
            return stage.small.full(call.inputs)
        computed = (index - self.end) % self.replayer.stride == 0 or index == len(self.record.outputs) - 1
        if tails == "coarse" and not computed:
            return stage.large.reusing(call.inputs, self._tail[call.branch])
        self.replayer.forwards += len(call.x)
        if tails == "coarse":
            residual = Kept()
            output = stage.large.recording(call.inputs, residual, {})
            self._tail[call.branch] = residual.buffer
            return output
        return stage.large.full(call.inputs)


class _Scope(Scope):
    def _new_run(self, place: Any, stage: Any) -> Any:
        self.session.standing_in.num_steps = place.total - place.position
        return self.session.standing_in


class StandIn(Session):
    """Passes a pipeline's calls to ``run`` instead of the engine's own run, within the context.

    Raises ``ValueError`` for a pipeline with two transformers, unless ``run`` takes calls of ``several``.
    """

    def __init__(self, pipe: Any, run: Any, small: nn.Module | None = None, *, several: bool = False):
        if not several and getattr(pipe, "transformer_2", None) is not None:
            raise ValueError("calibrations of pipelines with two transformers are not supported yet")
        never = Schedule([0], num_steps=1)  # a session needs a method; ``run`` decides by itself
        super().__init__(pipe, never, find(main_denoiser(pipe)), [small])
        self.standing_in = run

    def scope(
        self, pipe: Any, args: tuple, kwargs: dict[str, Any], num_steps: int | None = None, guidance: float = 1.0
    ) -> Scope:
        return _Scope(self, pipe, args, kwargs, num_steps, guidance)

    def become(self, run: Any) -> None:
        """Passes the next run's calls to ``run``."""
        self.standing_in = run

    @property
    def blocks(self) -> list[nn.Module]:
        return self.family.block_list(main_denoiser(self.pipe))

    def __enter__(self) -> StandIn:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()


class Replayer:
    """A pipeline under replay; a context manager that leaves it as it was.

    Args:
        pipe: a pipeline with one transformer of a known family.
        call: the arguments of its call, prompt and generator left out.
        small: the small transformer, for ``tails="small"``.
        reuse: what a stretch reuses: "blocks" or "residual", of the output.
        tails: how a replay computes the steps after its stretch: in full ("exact"), only every ``stride``-th step
            ("coarse"), by the small model ("small"), or not at all ("none").
        output: what is compared: "latent", or "pt" for pixels.
        max_gap: longest stretch that will be replayed; residuals of as many steps are kept.

    Attributes:
        forwards, small_forwards: branches that replays have computed so far.
        stored: branches computed for a residual or a record.
    """

    def __init__(
        self,
        pipe: Any,
        call: dict[str, Any],
        *,
        small: nn.Module | None = None,
        reuse: Reuse = "blocks",
        tails: Tails = "exact",
        stride: int = 2,
        output: str = "latent",
        max_gap: int = 7,
    ):
        if tails == "small" and small is None:
            raise ValueError("tails='small' needs the small model")
        if tails == "none" and output != "latent":
            raise ValueError("without tails there are no pixels to compare: use the latents")
        self.pipe, self.sampling, self.reuse, self.tails, self.stride = pipe, call, reuse, tails, stride
        self.output, self.window = output, 2 * (max_gap + 1)
        self.forwards = self.small_forwards = self.stored = 0
        self.residuals: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()  # by (step, branch)
        self._session = StandIn(pipe, None, small)

    def __enter__(self) -> Replayer:
        with contextlib.ExitStack() as stack:
            stack.enter_context(samples.prompts_encoded_once(self.pipe))
            stack.enter_context(self._session)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def record(self, prompt: str, seed: int) -> Record:
        """A run in full."""
        self.residuals.clear()
        recording = _Recording()
        with self._as(recording):
            final = samples.sample(self.pipe, prompt, seed, self.sampling, output=self.output)
        self.stored += sum(len(output) for step in recording.outputs for output in step)
        return Record(recording.outputs, final)

    def errors(self, record: Record, stretches: Sequence[Stretch], prompt: str, seed: int) -> list[float]:
        """mean |x_0 after the stretch - x_0 in full| of each stretch (arXiv 2511.00090, eq. 7); all end at one step.

        With other tails than "exact" both results are computed with the same tail.  Raises ``ValueError`` for stretches
        that end at different steps.
        """
        if len({s.end for s in stretches}) != 1:
            raise ValueError("stretches of one batch end at the same step")
        reference = [] if self.tails == "exact" else [Stretch(stretches[0].end - 1, stretches[0].end)]
        replaying = _Replaying(self, record, [*stretches, *reference])
        copies = len(replaying.stretches)
        with self._as(replaying), contextlib.suppress(_StopReplay):
            final = samples.sample(self.pipe, prompt, seed, self.sampling, copies, self.output)
        if self.tails == "none":
            final = replaying.entered
        expected = final[-1:] if reference else record.final
        difference = (final[: len(stretches)].double() - expected.double()).abs()
        return difference.flatten(1).mean(dim=1).tolist()

    @contextlib.contextmanager
    def _as(self, run: Any) -> Iterator[None]:
        self._session.become(run)
        try:
            yield
        finally:
            self._session.become(None)


__all__ = ["Record", "Replayer", "Stretch", "Tails"]
