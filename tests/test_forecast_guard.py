"""The guard: forecasts that are worse than calibrated are noticed, and made less of, exactly as a plain loop does."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from calibrated import STEPS, artifact, drawn, pipe_of
from forecast_loops import Guard, between, distance, fitted, forecast, task_of
from test_forecast import TWO, full
from test_oracle import ONE, SEED, TOLERANCE

import vaccel
from vaccel.actions import Weights
from vaccel.integrations.diffusers.schedulers import flow_of, with_response
from vaccel.planning import artifacts
from vaccel.planning.calibration import calibration
from vaccel.planning.gram import solver_weights

PATH = (0, 1, 3, 6, 8)


def perturbed(model, amount=0.05):
    """The same configuration, other weights."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(amount * p.std().nan_to_num() * torch.randn(p.shape, generator=generator))


def both(solver, guard, *, prompt=ONE, amount=0.0, path=PATH, order=2, guidance=5.0):
    """(the loop's guard and run, our latents and trace), both on a model that has changed by ``amount``."""
    file = artifact(solver, guidance, tails=4)
    method = vaccel.Forecast.load(file, budget=5, order=order, correct=False, allow_mismatch=True)
    method = dataclasses.replace(method, full_steps=path, guard=guard)
    (sample,) = artifacts.read(file, "forecast")["samples"].values()
    task, pipe = task_of(solver, prompt, guidance), pipe_of(solver)
    for model in (task.large, pipe.transformer):
        perturbed(model, amount)
    calibrated = full(solver, guidance)
    error_growth = drawn(between(sample["error_growth"], STEPS), 1, calibrated.levels[:-1])
    loop = Guard(calibrated.trajectory, calibrated.levels, error_growth, path, guard, method.max_error, order)
    expected = forecast(task, loop, fitted(calibrated.trajectory), order)
    with vaccel.accelerate(pipe, method) as handle:
        actual = tiny.latents(pipe, prompt, steps=STEPS, seed=SEED, guidance=guidance)
    return loop, expected, actual, handle.trace


def check(loop, expected, actual, trace):
    assert trace.timeline() == expected.letters
    assert distance(actual, expected.latents) < TOLERANCE
    seen = {s.index: s.metrics["forecast_error"] for s in trace.steps if "forecast_error" in s.metrics}
    assert seen == pytest.approx(loop.seen, rel=1e-4)
    said = f"forecast errors too large, computed {loop.extra} further steps" if loop.extra else "as calibrated"
    assert trace.notes[-1] == f"guard: {said}"


@pytest.mark.parametrize(
    ("solver", "amount", "guidance"),
    [("unipc", 0.5, 5.0), ("unipc", 1.0, 1.0), ("cog-ddim", 1.0, 5.0), ("qwen", 0.6, 1.0)],
)
def test_more_is_computed_where_forecast_errors_are_large(solver, amount, guidance):
    run = both(solver, 1.2, amount=amount, guidance=guidance)
    check(*run)
    loop, expected, _, trace = run
    assert loop.extra >= 2
    assert expected.letters.count("F") > len(PATH)
    assert trace.calls["large"] == expected.letters.count("F") * (2 if guidance > 1 else 1)


@pytest.mark.parametrize(("solver", "guidance"), [("unipc", 5.0), ("cog-ddim", 5.0), ("qwen", 1.0)])
def test_as_calibrated_nothing_more_is_computed(solver, guidance):
    """Up to the first skipped step the run is the calibrated one, so its first forecast is as wrong as it was there."""
    run = both(solver, 1.2, guidance=guidance)
    check(*run)
    loop, expected, _, trace = run
    assert loop.extra == 0
    assert [i for i, letter in enumerate(expected.letters) if letter == "F"] == list(PATH)
    assert sorted(loop.seen) == [2, 4, 7]
    assert trace.steps[2].metrics["forecast_error"] == pytest.approx(1, rel=1e-5)


def test_guidance_that_scales_tokens_is_taken_as_plain():
    """Qwen-Image's guided velocities are scaled to the norm of the conditional ones; what differs is not."""
    loop, expected, _, trace = both("qwen", 1.2, amount=0.3)
    assert trace.timeline() == expected.letters
    seen = {s.index: s.metrics["forecast_error"] for s in trace.steps if "forecast_error" in s.metrics}
    assert seen == pytest.approx(loop.seen, rel=0.05)


def test_the_most_cautious_sample_of_a_batch_decides():
    run = both("unipc", 1.1, prompt=TWO, amount=0.1)
    check(*run)
    loop, expected, _, _ = run
    assert any(max(ratios) > 1.01 * min(ratios) for ratios in loop.samples)
    assert loop.extra >= 1
    alone = both("unipc", 1.1, prompt=TWO[0], amount=0.1)
    check(*alone)
    assert alone[1].letters.count("F") < expected.letters.count("F")


@pytest.mark.parametrize(("order", "path"), [(1, PATH), (3, PATH), (2, (0, 1, 3))])
def test_other_orders_and_a_path_that_leaves_the_last_step_out(order, path):
    run = both("unipc", 1.2, amount=0.3, path=path, order=order)
    check(*run)
    assert run[0].extra >= 1


def test_at_a_guard_too_small_to_hold_every_step_is_computed():
    run = both("unipc", 1e-6)
    check(*run)
    assert run[1].letters == "FFFFFFFFF"


def test_a_guarded_run_is_replayed_bit_for_bit():
    *_, actual, trace = both("unipc", 1.2, amount=0.3)
    pipe = pipe_of("unipc")
    perturbed(pipe.transformer, 0.3)
    with vaccel.accelerate(pipe, trace.as_schedule()) as handle:
        assert torch.equal(tiny.latents(pipe, steps=STEPS, seed=SEED), actual)
        assert handle.trace.timeline() == trace.timeline()
        assert handle.trace.notes == []


def test_behind_the_last_step_nothing_grows():
    known = calibration(artifact("unipc", tails=4))
    assert known.error((3, 1), STEPS, "channel") == known.gram.latent_error((3, 1), STEPS) > 0
    assert (
        known.error((3, 1), STEPS - 1, "channel")
        == known.error_growth[-1] * known.gram.latent_error((3, 1), STEPS - 1)
        > 0
    )


def test_what_is_computed_beyond_the_path_is_reckoned_with():
    """With corrections the weights of a step are those of the path that was taken up to it, whatever was planned."""
    file, pipe = artifact("unipc", tails=4), pipe_of("unipc")
    method = dataclasses.replace(vaccel.Forecast.load(file, budget=5, allow_mismatch=True), full_steps=PATH, guard=1.02)
    perturbed(pipe.transformer, 1.0)
    with vaccel.accelerate(pipe, method) as handle:
        made = tiny.latents(pipe, steps=STEPS, seed=SEED)
        trace = handle.trace
    path = [i for i, letter in enumerate(trace.timeline()) if letter == "F"]
    assert len(path) > len(PATH)
    pipe.scheduler.set_timesteps(STEPS)
    response = with_response(flow_of(pipe.scheduler), pipe.scheduler).response
    expected = {i: Weights(w) for i, w in solver_weights(calibration(file).gram, path, response).items()}
    given = {s.index: s.action.correction if s.action.letter == "F" else s.action.weights for s in trace.steps}
    assert {i: w for i, w in given.items() if w is not None} == expected
    with vaccel.accelerate(pipe, trace.as_schedule()):
        assert torch.equal(tiny.latents(pipe, steps=STEPS, seed=SEED), made)


def test_a_second_run_is_judged_by_itself():
    method = dataclasses.replace(
        vaccel.Forecast.load(artifact("unipc", tails=4), budget=5, allow_mismatch=True), guard=1.2
    )
    pipe = pipe_of("unipc")
    perturbed(pipe.transformer, 0.3)
    with vaccel.accelerate(pipe, method) as handle:
        first = tiny.latents(pipe, steps=STEPS, seed=SEED)
        tiny.latents(pipe, "a blue dog sleeps", steps=STEPS, seed=3)
        assert torch.equal(tiny.latents(pipe, steps=STEPS, seed=SEED), first)
        one, _, other = handle.traces
        assert [s.metrics for s in one.steps] == [s.metrics for s in other.steps]
        assert one.notes == other.notes
