"""Calibrates Forecast: inner products of full runs' velocities, the growth of errors, and the PSNR of trial runs."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from ..actions import Action, Full, Weights
from ..actions import Forecast as Forecasting
from ..api import accelerate
from ..cache import Buffers, VelocityHistory
from ..engine.call import Call
from ..engine.report import RunReport
from ..engine.run import Run
from ..methods import Forecast, Method, Recording, Schedule
from ..methods.recording import Recorded
from ..models import find, fingerprints
from ..models.denoisers import main_denoiser
from ..planning.calibration import Calibration, error_growth_of, packed, sample_of
from ..planning.flow import Flow
from ..planning.joining import tried
from ..planning.levels import read_products
from ..planning.packing import added
from ..planning.paths import Plan
from .first_order import fewer
from .first_order import first_order as other_solver
from .replay import Invocation, StandIn, StandInRun
from .samples import Progress, Samples, prompts_encoded_once, runs_of, sample, silent, steps_of

#: name -> (the full run's clip [F, H, W, 3] in [0, 1], another) -> how far it is off; None where that does not apply.
Metrics = Mapping[str, Callable[[np.ndarray, np.ndarray], float | None]]
#: Shares of the run at which error growth is measured: dense where errors grow most.
POSITIONS = (0.04, 0.06, 0.08, 0.12, 0.16, 0.2, 0.26, 0.36, 0.52, 0.76)
#: Shares of all steps that the trial runs compute.
BUDGETS = (0.18, 0.26, 0.34, 0.44, 0.54)


def calibrate_forecast(
    pipe: Any,
    prompts: list[str],
    path: Path,
    *,
    seeds: Sequence[int] | None = None,
    call: dict[str, Any],
    bands: int = 1,
    tails: int = len(POSITIONS),
    tail_samples: int | None = None,
    trials: Sequence[float] = BUDGETS,
    keep: Literal["device", "host"] = "device",
    first_order: bool = True,
    metrics: Metrics = MappingProxyType({}),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Records every sample; writes the artifact ``path`` after each and returns its data.

    A sample is one ordinary run, of which only inner products are kept.  To measure error growth, the run is then
    repeated for several steps j, with step j - 1 forecast and all steps from j on computed: the growth at j is the
    error of the finished latents over that of the latents at step j.  Finally every sample is run with ``Forecast`` at
    several budgets, which relates predicted errors to PSNR; each such trial uses the calibration of the other samples,
    so that it is as wrong as for a new prompt (a single sample has only its own).  An interrupted calibration resumes
    with the same call; further prompts are added to the same artifact.

    Args:
        seeds: of the noise, each with every prompt; by default every prompt has one of its own.
        call: arguments of the pipeline's call, ``num_inference_steps`` among them.
        bands: 2 to separate low from high spatial frequencies.
        tails: number of steps j whose error growth is measured, 0 to 10; with 0 other models' growth is used instead.
        tail_samples: number of samples to measure it on; all by default.
        trials: budgets of the trial runs, as shares of all steps; with none, ``Auto(psnr=...)`` cannot be used.
        keep: where a run's velocities are kept until their inner products are computed.
        first_order: whether every sample of a multistep solver is also recorded with a first-order one and fewer steps,
            so that the calibration serves other solvers and numbers of steps as well (``first_order``).
        metrics: further ones than PSNR, by name, to compare the trial runs' clips with the full run's: ``Auto`` says
            what is to be expected of them.  Samples that have their trial runs already are left as they are.

    Raises ``ValueError`` when ``path`` holds a calibration of something else, or a setting is out of range.
    """
    header = header_of(pipe, call, bands=bands, tails=tails, tail_samples=tail_samples, trials=trials)
    steps = header["num_steps"]
    samples, timed = Samples(Path(path), header, prompts, seeds), {}
    jobs, chosen = samples.jobs, positions_of(steps, tails)
    other = other_solver(pipe.scheduler) if first_order else None
    recorded = steps + (fewer(steps) if other is not None else 0)
    work = len(jobs) * (recorded + sum(steps - j for j in chosen))
    total = work + len(jobs) * (steps + sum(round(share * steps) for share in trials) if trials else 0)

    def sample_of_job(number: int, begin: int, end: int) -> SampleRun:
        """A job, whose progress is its share of the work from ``begin`` to ``end``."""
        _, prompt, seed = jobs[number]
        part = (end - begin) / len(jobs)
        report = functools.partial(_report, progress, prompt, begin + part * number, part, total)
        return SampleRun(pipe, prompt, seed, call, bands, keep, report, other, metrics)

    with prompts_encoded_once(pipe):
        for number, (key, *_) in enumerate(jobs):
            if key not in samples.data:
                positions = chosen if tail_samples is None or number < tail_samples else []
                samples.data[key] = sample_of_job(number, 0, work).measure(positions)
                samples.save()
        for number, (key, *_) in enumerate(jobs):
            data = dict(samples.data[key])
            if trials and not tried(data):
                known = known_of(without(samples.header, samples.others, samples.data, key))
                data |= sample_of_job(number, work, total).run_trials(known, trials, data)
            elif "products" not in data:
                continue
            samples.data[key] = {**data, "done": True}
            samples.save()
        if trials and "times" not in samples.others:
            timed = times_of(pipe, *runs_of(prompts, seeds)[0], call, steps)
    return samples.merge(**timed)


def header_of(
    pipe: Any, call: dict[str, Any], *, bands: int, tails: int, tail_samples: int | None, trials: Sequence[float]
) -> dict[str, Any]:
    """What all samples share.  Raises ``ValueError`` for a setting out of range."""
    if bands not in (1, 2) or not 0 <= tails <= len(POSITIONS):
        raise ValueError(f"bands must be 1 or 2 and tails 0 to {len(POSITIONS)}, got {bands} and {tails}")
    if bands == 2 and not find(main_denoiser(pipe)).spatial:
        raise ValueError("bands=2 needs latents with rows and columns; this model's are packed into tokens")
    if tail_samples is not None and tail_samples < 0:
        raise ValueError(f"tail_samples must be 0 or more, got {tail_samples}")
    if not all(0 < share <= 1 for share in trials):
        raise ValueError(f"trials are shares of all steps, above 0 and at most 1: got {list(trials)}")
    return fingerprints.header(Forecast.id, pipe, call, num_steps=steps_of(call), bands=bands)


def _report(progress: Progress, prompt: str, begin: float, part: float, total: int, share: float) -> None:
    """Reports that a ``share`` of a part of the work, from ``begin`` on, is done."""
    progress(round(begin + part * share), total, prompt)


def positions_of(steps: int, count: int) -> list[int]:
    """The steps at which error growth is measured."""
    shares = [POSITIONS[round(k)] for k in np.linspace(0, len(POSITIONS) - 1, count)] if count else []
    return sorted({min(max(2, round(share * steps)), steps - 1) for share in shares} if steps > 3 else ())


def times_of(pipe: Any, prompt: str, seed: int, call: dict[str, Any], steps: int) -> dict[str, dict[str, float]]:
    """Seconds of a computed step, of a skipped one, and of the rest of a call; medians of three runs."""
    found: list[tuple[float, float, float]] = []
    for _ in range(3 if steps > 3 else 0):
        reports: list[RunReport] = []
        with accelerate(pipe, Forecast.shaped(steps, max(2, steps // 3))) as handle:
            handle.on_run(reports.append)
            start = time.perf_counter()
            sample(pipe, prompt, seed, call, output="pt")
            seconds = time.perf_counter() - start
        # What the run did: at its own noise levels it may have planned other steps than the method lists.
        spans = [s for report in reports for s in report.step_seconds]
        computed = [step.action.is_full for report in reports for step in report.trace.steps]
        full = [s for s, whole in zip(spans, computed, strict=True) if whole]
        skipped = [s for s, whole in zip(spans, computed, strict=True) if not whole]
        found.append((statistics.median(full), statistics.median(skipped), max(seconds - sum(spans), 0.0)))
    names = ("full", "skipped", "beside")
    return {"times": dict(zip(names, map(statistics.median, zip(*found, strict=True)), strict=True))} if found else {}


def without(
    header: Mapping[str, Any], others: Mapping[str, Any], samples: Mapping[str, Any], key: str
) -> dict[str, Any]:
    """What a calibration knows by all samples but one, as plain data for ``known_of``; by that one too where it is the
    only one or is in the sum already.

    Args:
        others, samples: an artifact's, as ``Samples`` has them.
    """
    chosen = {name: samples[name] for name in sorted(samples)}  # the file's order, whatever the order of measuring
    growth = None
    if len(chosen) > 1 and "products" in chosen[key]:
        # Error growth is not measured on every sample, so that of all samples is used.
        growth = [s["error_growth"] for s in chosen.values()]
        del chosen[key]
    kept = [others["products"]] if "products" in others else []
    kept += [s["products"] for s in chosen.values() if "products" in s]
    plain = {name: {n: v for n, v in s.items() if n != "products"} for name, s in chosen.items()}
    return {"data": {**header, **others, "samples": plain, "products": added(kept)}, "growth": growth}


def known_of(plain: dict[str, Any]) -> Calibration:
    """The calibration that ``without`` describes."""
    known = Calibration(plain["data"])
    if plain["growth"] is not None:
        known.error_growth = error_growth_of(plain["growth"], known.gram.levels[:-1])
    return known


class SampleRun:
    """One prompt and seed: its full run, its replays and its trial runs."""

    def __init__(
        self, pipe: Any, prompt: str, seed: int, call: dict[str, Any], bands: int, keep: str,
        report: Callable[[float], None], other: Any = None, metrics: Metrics = MappingProxyType({}),
    ):  # fmt: skip
        self.pipe, self.prompt, self.seed, self.call, self.bands, self.keep = pipe, prompt, seed, call, bands, keep
        self.report, self.other, self.metrics, self.forwards = report, other, metrics, 0

    def measure(self, positions: list[int]) -> dict[str, Any]:
        """The sample: noise levels, inner products, error growth at ``positions``, and the cost of measuring them."""
        began = time.perf_counter()
        steps = int(self.call["num_inference_steps"])
        self.report(0)
        final, recorded = self._in_full("latent")
        self.gram, data = sample_of(*recorded, self.bands)
        if self.other is not None:
            data["products"] = self._with_other_solver()
        data["seconds_recording"] = time.perf_counter() - began
        done = steps + (fewer(steps) if self.other is not None else 0)
        total = done + sum(steps - j for j in positions)
        for j in positions:
            self.report(done / total)
            data["error_growth"][str(j)] = self._error_growth(recorded, final, j)
            done += steps - j
        self.report(1)
        return {**data, "forwards": self.forwards, "seconds": time.perf_counter() - began}

    def _with_other_solver(self) -> str:
        """The mean of the sample's products and of those that the other solver's run has at the same levels."""
        own, call = self.pipe.scheduler, self.call
        self.pipe.scheduler = self.other
        self.call = {**call, "num_inference_steps": fewer(int(call["num_inference_steps"]))}
        try:
            _, recorded = self._in_full("latent")
        finally:
            self.pipe.scheduler, self.call = own, call
        other = read_products(sample_of(*recorded, self.bands)[0], self.gram.levels)
        return packed((self.gram.products + other.products) / 2)

    def run_trials(self, known: Calibration, shares: Sequence[float], data: dict[str, Any]) -> dict[str, Any]:
        """[predicted error, PSNR in dB of the decoded clip] at each budget, and the sample's cost including them."""
        began, before = time.perf_counter(), self.forwards
        plans, steps = known.plans(), known.gram.num_steps
        budgets = sorted({min(max(round(share * steps), min(plans)), max(plans)) for share in shares})
        self.report(0)
        full, recorded = self._in_full("pt")
        curve, others, done = [], {name: [] for name in self.metrics}, steps
        for budget in budgets:
            self.report(done / (steps + sum(budgets)))
            done += budget
            clip, _ = self._with(Schedule.from_actions(_actions(known, plans[budget], recorded.flow)), "pt")
            error = float((clip.double() - full.double()).square().mean())
            if error > 0:
                curve.append([plans[budget].predicted, -10 * math.log10(error)])
            for name, metric in self.metrics.items():
                if (value := metric(_frames(full), _frames(clip))) is not None:
                    others[name].append([plans[budget].predicted, float(value)])
        self.report(1)
        seconds = data["seconds"] + time.perf_counter() - began
        found = {"curves": [curve], "forwards": data["forwards"] + self.forwards - before, "seconds": seconds}
        return found | ({"metrics": {name: [c] for name, c in others.items()}} if others else {})

    def _in_full(self, output: str) -> tuple[torch.Tensor, Recorded]:
        """(the output of the run in full, its velocities)."""
        return self._with(Recording(self.keep), output)

    def _with(self, method: Method, output: str) -> tuple[torch.Tensor, Any]:
        """(the output of a run by this method, what the method delivers with the trace)."""
        with accelerate(self.pipe, method) as handle:
            made = self._run(output).clone()
            self.forwards += handle.trace.calls["large"]
            return made, handle.trace.delivered

    def _run(self, output: str) -> torch.Tensor:
        return sample(self.pipe, self.prompt, self.seed, self.call, output=output)

    def _error_growth(self, recorded: Recorded, final: torch.Tensor, j: int) -> float:
        """The error of the finished latents over that of the latents at step j, when step j - 1 is forecast."""
        known = tuple(range(j - 2, max(j - 4, -1), -1))
        replay = _Replay(recorded, j, Weights(self.gram.weights(known, j - 1)))
        with StandIn(self.pipe, replay, several=True):
            ended = self._run("latent")
        self.forwards += replay.forwards
        error = float((ended.double() - final.double()).square().mean().sqrt())
        return error / max(self.gram.latent_error(known, j), 1e-12)


def _frames(made: torch.Tensor) -> np.ndarray:
    """The first clip [F, H, W, 3] of clips [B, F, 3, H, W] or pictures [B, 3, H, W]; a sound as it is."""
    first = made[0].float().cpu()
    if first.ndim < 3:
        return np.atleast_2d(first.numpy())
    return np.moveaxis((first if first.ndim == 4 else first[None]).numpy(), 1, -1)


class _Replay(StandInRun):
    """A run as recorded up to step j - 1, which is forecast, and computed from j on."""

    def __init__(self, recorded: Recorded, j: int, weights: Weights):
        super().__init__()
        self.recorded, self.j, self.weights, self.forwards = recorded, j, weights, 0
        count = weights.count
        self.engine = Run(Schedule([0], num_steps=recorded.flow.num_steps, reuse="forecast"), recorded.flow.num_steps,
                          Buffers(), flow=recorded.flow)  # fmt: skip
        self.engine.stores = (VelocityHistory(count),)

    def take(self, index: int, call: Invocation) -> torch.Tensor:
        if index >= self.j:
            self.forwards += 2 if call.batched else 1
            return call.stage.large.full(call.inputs)
        bound = self._bound(index, call)
        history = bound.slots["large.velocities"]
        if index == self.j - 1:
            return history.forecast(bound, self.weights)
        prediction = self._as_recorded(index, call)
        history.after(bound, prediction)
        return prediction

    def _bound(self, index: int, call: Invocation) -> Call:
        """The call in the form that stores take."""
        engine, key = self.engine, (0, call.branch)  # whichever model it is of: velocities go on
        if key not in engine.calls_bound:
            stage = dataclasses.replace(call.stage, index=0)
            engine.calls_bound[key] = Call(engine, stage, call.branch, call.x, call.batched)
        engine.index = index
        bound = engine.calls_bound[key]
        bound.x, bound.inputs = call.x, call.inputs
        return bound

    def _as_recorded(self, index: int, call: Invocation) -> torch.Tensor:
        """The recorded guided prediction, for every branch: guidance of equal branches leaves it as it is."""
        velocities, flow = self.recorded.velocities, self.recorded.flow
        velocity = velocities[index].to(call.x.device, call.x.dtype)
        velocity = velocity.repeat(len(call.x) // len(velocity), *[1] * (velocity.ndim - 1))
        if flow.scales is None:
            return velocity
        of_prediction, of_x = flow.scales[index]
        return (velocity - of_x * call.x) / of_prediction


def _actions(known: Calibration, plan: Plan, flow: Flow) -> list[Action]:
    """The actions of ``Forecast`` along a path, one a step."""
    path = plan.full_steps
    if flow.response is not None:
        weights = known.solver_weights(path, flow.response)
    else:
        skipped = [i for i in range(flow.num_steps) if i not in path]
        weights = {i: known.weights(tuple(f for f in reversed(path) if f < i)[:2], i) for i in skipped}
    return [Full(weights.get(i)) if i in path else Forecasting(weights[i]) for i in range(flow.num_steps)]
