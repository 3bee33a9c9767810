"""What a solver is given so that skipped steps are made up for: its response, the weights, the engine's part."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from test_calibrate_lemica import sampling

import vaccel
from vaccel.actions import Forecast, Full, Weights
from vaccel.calibrate import calibrate_forecast
from vaccel.calibrate.replay import StandIn, StandInRun
from vaccel.integrations.diffusers.schedulers import flow_of, with_response
from vaccel.planning.gram import CORRECTING, Gram, solver_weights

STEPS = 9
SOLVERS = {
    "UniPC": tiny.unipc,
    "Euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "DPM++": lambda: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "DDIM, v": lambda: CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    "DDIM, epsilon": lambda: DDIMScheduler(prediction_type="epsilon", clip_sample=False),
}


def set_up(solver):
    scheduler = SOLVERS[solver]()
    scheduler.set_timesteps(STEPS)
    return scheduler


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_response_is_what_the_solver_does(solver):
    """Any velocities: the latents of every step are the start's part and the response's weighted sum."""
    scheduler = set_up(solver)
    flow = with_response(flow_of(scheduler), scheduler)
    generator = torch.Generator().manual_seed(0)
    velocities = torch.randn(STEPS, 1, 4, generator=generator, dtype=torch.float64)
    start = torch.randn(1, 4, generator=generator, dtype=torch.float64)

    def sampled(velocities):
        scheduler, x, seen = set_up(solver), start, []
        for i, t in enumerate(scheduler.timesteps):
            seen.append(x)
            of_prediction, of_x = flow.scales[i] if flow.scales is not None else (1.0, 0.0)
            x = scheduler.step((velocities[i] - of_x * x) / of_prediction, t, x, return_dict=False)[0]
        return torch.stack([*seen, x])

    difference = sampled(velocities) - sampled(torch.zeros_like(velocities))
    response = torch.tensor(flow.response, dtype=torch.float64)
    expected = torch.einsum("ni,ibc->nbc", response, velocities)
    torch.testing.assert_close(difference.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    fresh = set_up(solver)
    with_response(flow_of(fresh), fresh)
    assert getattr(fresh, "_step_index", None) is None, "the pipeline's own is as it was"


def test_eulers_response_is_the_levels_differences():
    scheduler = set_up("Euler")
    flow = with_response(flow_of(scheduler), scheduler)
    for n, row in enumerate(flow.response):
        expected = [flow.levels[i + 1] - flow.levels[i] if i < n else 0.0 for i in range(STEPS)]
        assert row == pytest.approx(expected, abs=1e-6)


def test_a_solver_that_cannot_be_asked_leaves_it_out():
    scheduler = CogVideoXDPMScheduler(prediction_type="v_prediction")
    scheduler.set_timesteps(STEPS)
    assert with_response(flow_of(scheduler), scheduler).response is None


def trajectories(seed=0, samples=3, channels=2, elements=40):
    """Smooth ones: [samples, T, C, n]."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, STEPS)[None, :, None, None]
    a, b, c = rng.standard_normal((3, samples, 1, channels, elements))
    return a + b * time + c * np.sin(3 * time) + 0.02 * rng.standard_normal((samples, STEPS, channels, elements))


def gram_of(v):
    products = np.einsum("stcn,sucn->ctu", v, v)[None] / len(v)
    return Gram(tuple(np.linspace(1, 0, STEPS + 1)), products, v.shape[2] * v.shape[3])


def made_up_for(v, path, response, order):
    """In full vectors, by least squares: what each step gives the solver, [T, samples, C, n]."""
    given = np.zeros((STEPS, *v[:, 0].shape))
    computed = []
    for i in range(STEPS):
        off = 0 * v[:, 0]
        for m in range(i):
            off = off + response[i + 1, m] / response[i + 1, i] * (given[m] - v[:, m])
        if i in path:
            computed.insert(0, i)
            wanted, base, used = -off, v[:, i], computed[:CORRECTING]
        else:
            wanted, base, used = v[:, i] - off, 0 * v[:, i], computed[:order]
        if i in path and not off.any():
            given[i] = v[:, i]
            continue
        for channel in range(v.shape[2]):
            basis = np.stack([v[:, f, channel].ravel() for f in used], axis=1)
            weights = np.linalg.lstsq(basis, wanted[:, channel].ravel(), rcond=None)[0]
            given[i][:, channel] = base[:, channel] + (basis @ weights).reshape(v[:, i, channel].shape)
    return given


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["UniPC", "Euler", "DPM++"])
def test_the_weights_are_those_of_full_vectors(solver, order, monkeypatch):
    """Without the ridge, normal equations and least squares are the same but for rounding.

    Inner products of n elements are rounded by up to n eps, a step's solution by its condition number times that; what
    earlier steps are off by enters it as often as the solver weighs them against it.
    """
    monkeypatch.setattr("vaccel.planning.gram.RIDGE", 0.0)
    scheduler = set_up(solver)
    response = np.array(with_response(flow_of(scheduler), scheduler).response)
    v, path = trajectories(), (0, 1, 2, 4, 5, 8)
    found = solver_weights(gram_of(v), path, response, order=order)
    expected = made_up_for(v, path, response, order)
    products, rounded = gram_of(v).products[0], np.zeros(STEPS)
    for i in range(STEPS):
        computed = [f for f in reversed(path) if f <= i]
        if i not in found:
            assert i in path
            np.testing.assert_array_equal(expected[i], v[:, i])
            continue
        weights = found[i][:, 0]  # [K, C]
        assert len(weights) == min(len(computed), CORRECTING if i in path else order)
        mine = sum(weights[k][:, None] * v[:, f] for k, f in enumerate(computed[: len(weights)]))
        used = computed[: len(weights)]
        condition = max(np.linalg.cond(p[np.ix_(used, used)]) for p in products)
        inherited = sum(abs(response[i + 1, m] / response[i + 1, i]) * rounded[m] for m in range(i))
        rounded[i] = condition * v[:, 0, 0].size * np.finfo(float).eps * np.linalg.norm(expected[i]) + inherited
        assert rounded[i] < 1e-6 * np.linalg.norm(expected[i]), "the case is too ill-conditioned to say much"
        assert np.linalg.norm(mine - expected[i]) <= rounded[i]


def test_nothing_is_corrected_where_nothing_was_skipped():
    response = np.tril(np.full((STEPS + 1, STEPS), -0.1), -1)
    assert solver_weights(gram_of(trajectories()), range(STEPS), response) == {}
    early = solver_weights(gram_of(trajectories()), (0, 1, 2, 3, 5, 8), response)
    assert not {0, 1, 2, 3} & early.keys()
    assert {4, 5, 6, 7} <= early.keys()


def test_it_brings_the_latents_back():
    """Where the run's own velocities are as calibrated, they end nearer to the full run's than without."""
    v = trajectories(samples=1)
    scheduler = set_up("UniPC")
    response = np.array(with_response(flow_of(scheduler), scheduler).response)
    path = (0, 1, 3, 5, 8)
    corrected = made_up_for(v, path, response, 2)
    plain = v[:, :].swapaxes(0, 1).copy()
    gram = gram_of(v)
    for i in set(range(STEPS)) - set(path):
        known = [f for f in reversed(path) if f < i][:2]
        weights = gram.weights(known, i)[:, 0]
        plain[i] = sum(weights[k][:, None] * v[:, f] for k, f in enumerate(known))
    full = v.swapaxes(0, 1)
    ends = [np.linalg.norm(np.einsum("i,iscn->scn", response[-1], given - full)) for given in (corrected, plain)]
    assert ends[0] < 0.5 * ends[1]


class Given(StandInRun):
    """A run that gives the solver fixed combinations of what the model said."""

    def __init__(self, actions):
        super().__init__()
        self.actions, self.said = actions, {0: [], 1: []}

    def take(self, index, call):
        action, branch = self.actions[index], call.branch
        if isinstance(action, Full):
            self.said[branch].insert(0, call.stage.large.full(call.inputs).clone())
        weights = action.correction if isinstance(action, Full) else action.weights
        if weights is None:
            return self.said[branch][0].clone()
        values = torch.tensor(weights.values.copy())[:, 0]  # [K, C]
        return sum(w.view(1, -1, 1, 1, 1) * v for w, v in zip(values, self.said[branch], strict=False))


def test_the_engine_gives_the_solver_what_an_action_says():
    rng = np.random.default_rng(1)

    def weights(count):
        return Weights(rng.standard_normal((count, 1, 16)) / 4 + 1 / count)

    actions = [Full(), Full(), Forecast(weights(2)), Full(weights(3)), Full(), Forecast(weights(1)), Full(weights(2))]
    schedule = vaccel.Schedule.from_actions(actions)
    assert vaccel.method_from_json(schedule.to_json()) == schedule
    assert schedule.stores[0].count == 3
    pipe = tiny.wan_pipeline()
    with StandIn(pipe, Given(actions)):
        expected = tiny.latents(pipe, steps=len(actions))
    with vaccel.accelerate(pipe, schedule) as handle:
        found = tiny.latents(pipe, steps=len(actions))
        assert handle.trace.timeline() == "FFpFFpF"
        assert handle.trace.calls["large"] == 2 * 5
        assert handle.memory_plan(**tiny.arguments(pipe, steps=len(actions)))["total"] == handle.nbytes
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_forecast_corrects_unless_told_not_to(tmp_path):
    pipe, path = tiny.wan_pipeline(), tmp_path / "forecast.json"
    calibrate_forecast(pipe, ["a red cat runs"], path, call=sampling(pipe, STEPS), tails=0, trials=(0.5,))
    for correct in (True, False):
        method = vaccel.Forecast.load(path, 5, correct=correct)
        with vaccel.accelerate(pipe, method) as handle:
            tiny.latents(pipe, steps=STEPS)
            corrections = [s.action.correction for s in handle.trace.steps if isinstance(s.action, Full)]
            assert any(c is not None for c in corrections) == correct
            again = handle.trace.as_schedule()
            made = tiny.latents(pipe, steps=STEPS)
        with vaccel.accelerate(pipe, again):
            assert torch.equal(tiny.latents(pipe, steps=STEPS), made)


def test_a_correction_that_reaches_too_far_is_left_out():
    """Of a last step that is tiny beside the levels skipped before it; earlier ones stay as they are."""
    levels = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1, 0.001, 0.0)
    path = (0, 1, 3, 5, 8)
    widths = np.diff(levels)
    response = np.tril(np.tile(widths, (STEPS + 1, 1)), -1)
    known = Gram(levels, gram_of(trajectories()).products, gram_of(trajectories()).elements)
    every, near = solver_weights(known, path, response), solver_weights(known, path, response, reach=8.0)
    assert set(every) - set(near) == {8}, "0.2 of the level was skipped before it, 0.001 is its own"
    for step in near:
        np.testing.assert_array_equal(near[step], every[step])
    assert set(solver_weights(known, path, response, reach=0.9)) == {2, 3, 4, 6, 7}, "3 skips half of its own change"
