"""Measures what Forecast weighs with: inner products of full runs' velocities, how errors grow, what they look like."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..actions import Action, Full, Weights
from ..actions import Forecast as Forecasting
from ..api import accelerate
from ..cache.buffers import Buffers
from ..cache.velocity_history import Past
from ..integrations.diffusers.auto import Stopwatch
from ..methods import Forecast, Method, Recording, Schedule
from ..methods.recording import Recorded
from ..models import find, fingerprints
from ..models.transformer import Call
from ..planning import artifacts
from ..planning.calibration import Calibration, added, gains_between, sample_of
from ..planning.flow import Flow
from ..planning.gram import Plan
from .replay import StandIn
from .samples import Progress, Samples, prompts_encoded_once, sample, silent

#: Shares of the run where a deviation is made to see what it grows to: close where it grows most.
POSITIONS = (0.04, 0.06, 0.08, 0.12, 0.16, 0.2, 0.26, 0.36, 0.52, 0.76)
#: Shares of all steps that runs are made with to see what a predicted error looks like.
BUDGETS = (0.18, 0.26, 0.34, 0.44, 0.54)


def calibrate_forecast(
    pipe: Any,
    prompts: list[str],
    path: Path,
    *,
    seeds: Sequence[int] = (0,),
    call: dict[str, Any],
    bands: int = 1,
    tails: int = len(POSITIONS),
    tail_samples: int | None = None,
    trials: Sequence[float] = BUDGETS,
    keep: Literal["device", "host"] = "device",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Records every sample; writes the artifact ``path`` after each and returns its data.

    A sample is one ordinary run, of which only inner products are kept.  Then, for a number of steps j, the run is
    repeated with step j - 1 forecast and all from j on computed: the gain g_j is by what the deviation has grown at
    the end.  At last every sample is run as ``Forecast`` would with some budgets, to see which PSNR belongs to which
    predicted error: with what the other samples say, as a prompt of tomorrow is run (a single sample has only itself).
    Interrupted, the same call goes on where it stopped; further prompts add to the same artifact.

    Args:
        call: arguments of the pipeline's call, ``num_inference_steps`` among them.
        bands: 2 to tell low spatial frequencies from high ones.
        tails: how many steps j; 0 for none, typical gains then stand in.
        tail_samples: of how many samples, of all if not given.
        trials: budgets as shares of all steps; none for no runs, and then no PSNR can be asked for.
        keep: where a run's velocities are kept until their inner products are taken.

    Raises ``ValueError`` when ``path`` holds a calibration of something else, or a setting does not fit.
    """
    if bands not in (1, 2) or not 0 <= tails <= len(POSITIONS):
        raise ValueError(f"bands must be 1 or 2 and tails 0 to {len(POSITIONS)}, got {bands} and {tails}")
    if bands == 2 and not find(pipe.transformer).spatial:
        raise ValueError("bands=2 needs latents with rows and columns; this model's are packed into tokens")
    steps = int(call["num_inference_steps"])
    samples = Samples(Path(path), fingerprints.header(Forecast.id, pipe, call, num_steps=steps, bands=bands))
    before, timed = _added_up(samples), {}
    jobs, chosen = samples.jobs(prompts, list(seeds)), _positions(steps, tails)
    work = len(jobs) * (steps + sum(steps - j for j in chosen))
    total = work + len(jobs) * (steps + sum(round(share * steps) for share in trials) if trials else 0)

    def measuring(number: int, begin: int, end: int) -> _Sample:
        """A job, which takes its share of the progress from ``begin`` to ``end``."""
        _, prompt, seed = jobs[number]

        def told(share: float) -> None:
            progress(begin + round((end - begin) * (number + share) / len(jobs)), total, prompt)

        return _Sample(pipe, prompt, seed, call, bands, keep, told)

    with prompts_encoded_once(pipe):
        for number, (key, *_) in enumerate(jobs):
            if key not in samples.data:
                wanted = chosen if tail_samples is None or number < tail_samples else []
                samples.data[key] = measuring(number, 0, work).measured(wanted)
                samples.save(**before)
        for number, (key, *_) in enumerate(jobs if trials else ()):
            data = samples.data[key]
            if "trials" not in data:
                data |= measuring(number, work, total).tried(_of_others(samples, key, before), trials, data)
                samples.save(**before)
        if trials and "times" not in before:
            timed = _timed(pipe, prompts[0], seeds[0], call, steps)
    return samples.merge(lambda every: {**before, **_sum(every, before), **timed})


def _positions(steps: int, count: int) -> list[int]:
    """The steps whose gains are measured."""
    shares = [POSITIONS[round(k)] for k in np.linspace(0, len(POSITIONS) - 1, count)] if count else []
    return sorted({min(max(2, round(share * steps)), steps - 1) for share in shares} if steps > 3 else ())


def _timed(pipe: Any, prompt: str, seed: int, call: dict[str, Any], steps: int) -> dict[str, dict[str, float]]:
    """Seconds of a computed step, of a skipped one, and of a call beside its steps; medians of three runs."""
    found: list[tuple[float, float, float]] = []
    for _ in range(3 if steps > 3 else 0):
        method = Forecast.shaped(steps, max(2, steps // 3))
        with accelerate(pipe, method) as handle:
            watch = handle._session.watch = Stopwatch(pipe)
            sample(pipe, prompt, seed, call, output="pt")
            spans, beside = watch.measured[-1]
        full = [s for i, s in enumerate(spans) if i in method.full_steps]
        skipped = [s for i, s in enumerate(spans) if i not in method.full_steps]
        found.append((statistics.median(full), statistics.median(skipped), beside))
    names = ("full", "skipped", "beside")
    return {"times": dict(zip(names, map(statistics.median, zip(*found, strict=True)), strict=True))} if found else {}


def _added_up(samples: Samples) -> dict[str, Any]:
    """What an earlier calibration has left of all samples together, by its name in the artifact."""
    if not samples.path.exists():
        return {}
    data = artifacts.read(samples.path, Forecast.id)
    return {name: data[name] for name in ("products", "times") if name in data}


def _of_others(samples: Samples, key: str, before: dict[str, Any]) -> Calibration:
    """What the velocities of all samples but one say; of that one too, where it is the only one or added up already."""
    data = samples.artifact(**before)
    others = {name: s for name, s in data["samples"].items() if name != key}
    if not others or "products" not in data["samples"][key]:
        return Calibration(data)
    known = Calibration({**data, "samples": others})
    # Not every sample is followed to the end: all gains count.
    known.gains = gains_between([s["gains"] for s in data["samples"].values()], known.gram.num_steps)
    return known


def _sum(every: dict[str, dict[str, Any]], before: dict[str, Any]) -> dict[str, str]:
    """All samples' products in one, in the order of their keys; they are taken out of the samples."""
    own = [data.pop("products") for _, data in sorted(every.items()) if "products" in data]
    return {"products": added([*([before["products"]] if "products" in before else []), *own])} if own else {}


class _Sample:
    """One prompt and seed: its full run, and replays of it."""

    def __init__(
        self, pipe: Any, prompt: str, seed: int, call: dict[str, Any], bands: int, keep: str,
        told: Callable[[float], None],
    ):  # fmt: skip
        self.pipe, self.prompt, self.seed, self.call, self.bands, self.keep = pipe, prompt, seed, call, bands, keep
        self.told, self.forwards = told, 0

    def measured(self, positions: list[int]) -> dict[str, Any]:
        """Levels, inner products, gains, and what that cost."""
        began = time.perf_counter()
        steps = int(self.call["num_inference_steps"])
        self.told(0)
        final, recorded = self._in_full("latent")
        self.gram, data = sample_of(*recorded, find(self.pipe.transformer).channel_axis, self.bands)
        data["seconds_recording"] = time.perf_counter() - began
        done, total = steps, steps + sum(steps - j for j in positions)
        for j in positions:
            self.told(done / total)
            data["gains"][str(j)] = self._gain(recorded, final, j)
            done += steps - j
        self.told(1)
        return {**data, "forwards": self.forwards, "seconds": time.perf_counter() - began}

    def tried(self, known: Calibration, shares: Sequence[float], data: dict[str, Any]) -> dict[str, Any]:
        """[predicted error, PSNR in dB of the decoded clip] at each budget; and what the sample has cost with it."""
        began, before = time.perf_counter(), self.forwards
        plans, steps = known.plans(), known.gram.num_steps
        budgets = sorted({min(max(round(share * steps), min(plans)), max(plans)) for share in shares})
        self.told(0)
        full, recorded = self._in_full("pt")
        trials, done = [], steps
        for budget in budgets:
            self.told(done / (steps + sum(budgets)))
            done += budget
            clip, _ = self._with(Schedule.from_actions(_actions(known, plans[budget], recorded.flow)), "pt")
            error = float((clip.double() - full.double()).square().mean())
            if error > 0:
                trials.append([plans[budget].predicted, -10 * math.log10(error)])
        self.told(1)
        seconds = data["seconds"] + time.perf_counter() - began
        return {"trials": trials, "forwards": data["forwards"] + self.forwards - before, "seconds": seconds}

    def _in_full(self, output: str) -> tuple[torch.Tensor, Recorded]:
        """The run in full: what it makes, and its velocities."""
        return self._with(Recording(self.keep), output)

    def _with(self, method: Method, output: str) -> tuple[torch.Tensor, Any]:
        """What a run by this method makes, and what the method delivers."""
        with accelerate(self.pipe, method) as handle:
            made = self._run(output).clone()
            self.forwards += handle.trace.calls["large"]
            return made, handle.trace.delivered

    def _run(self, output: str) -> torch.Tensor:
        return sample(self.pipe, self.prompt, self.seed, self.call, output=output)

    def _gain(self, recorded: Recorded, final: torch.Tensor, j: int) -> float:
        """By what a deviation at step j, of step j - 1 forecast, has grown when the run is over."""
        known = tuple(range(j - 2, max(j - 4, -1), -1))
        replay = _Replay(recorded, j, Weights(self.gram.weights(known, j - 1)))
        with StandIn(self.pipe, replay):
            ended = self._run("latent")
        self.forwards += replay.forwards
        error = float((ended.double() - final.double()).square().mean().sqrt())
        return error / max(self.gram.deviation(known, j), 1e-12)


class _Replay:
    """Stands in for an engine's run: as recorded up to step j - 1, which is forecast, and computed from j on."""

    def __init__(self, recorded: Recorded, j: int, weights: Weights):
        self.recorded, self.j, self.weights = recorded, j, weights
        self.past = Past(Buffers(), recorded.flow, len(weights.values), False)
        self.index, self.calls, self.forwards = -1, 0, 0

    def call(self, index: int, call: Call) -> torch.Tensor:
        if index != self.index:
            self.index, self.calls = index, 0
        self.calls += 1
        if index >= self.j:
            self.forwards += 2 if call.batched else 1
            return call.stage.large.full(call.inputs)
        if index == self.j - 1:
            return self.past.forecast(index, call, self.weights)
        prediction = self._as_recorded(index, call)
        self.past.remember(index, call, prediction)
        return prediction

    def _as_recorded(self, index: int, call: Call) -> torch.Tensor:
        """The guided prediction for every branch: whatever guidance is made of equal ones is that one."""
        velocities, flow = self.recorded
        velocity = velocities[index].to(call.x.device, call.x.dtype)
        velocity = velocity.repeat(len(call.x) // len(velocity), *[1] * (velocity.ndim - 1))
        if flow.scales is None:
            return velocity
        of_prediction, of_x = flow.scales[index]
        return (velocity - of_x * call.x) / of_prediction


def _actions(known: Calibration, plan: Plan, flow: Flow) -> list[Action]:
    """What ``Forecast`` does along a path, step by step."""
    path = plan.full_steps
    if flow.response is not None:
        given = known.given(path, flow.response)
    else:
        skipped = [i for i in range(flow.num_steps) if i not in path]
        given = {i: known.weights(tuple(f for f in reversed(path) if f < i)[:2], i) for i in skipped}
    return [Full(given.get(i)) if i in path else Forecasting(given[i]) for i in range(flow.num_steps)]
