"""The prior corrected by what a run's computed steps show."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import tiny
import torch

import vaccel
from vaccel.planning.calibration import calibration
from vaccel.planning.flow import Flow
from vaccel.planning.gram import Gram, solver_weights
from vaccel.planning.prior import shipped
from vaccel.planning.straightness import SHARES, SLOPE, Straightness, straightened

pytestmark = pytest.mark.fast
STEPS = 12
LEVELS = tuple(1 - i / STEPS for i in range(STEPS + 1))


@pytest.fixture(scope="module")
def prior():
    return calibration(shipped()).at(LEVELS)


def drawn(products, elements=20_000):
    """Velocities [T, elements] whose inner products are those of a Gram matrix, in the mean."""
    values, vectors = np.linalg.eigh(products)
    random = np.random.default_rng(0).standard_normal((len(products), elements))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ random


def watched(prior, velocities, path):
    """The straightness that the computed steps of a path show."""
    seen, computed = Straightness(prior), []
    for step in path:
        computed.insert(0, step)
        known = velocities[computed[:3]]
        seen.saw(computed, known @ known.T)
    return seen


def test_lines_and_the_prior_are_mixed(prior):
    assert straightened(prior, 0.0) is prior
    made = straightened(prior, 0.9)
    assert straightened(prior, 0.9) is made
    own = prior.gram.grouped("tensor")[0]
    line = np.array([[1 + SLOPE * (s - 0.5) * (r - 0.5) for r in LEVELS[:-1]] for s in LEVELS[:-1]])
    expected = 0.1 * own + 0.9 * line * np.trace(own) / np.trace(line)
    np.testing.assert_allclose(made.gram.grouped("tensor")[0], expected, rtol=1e-12)
    assert made.error_growth == prior.error_growth


@pytest.mark.parametrize("share", [0.0, 0.97, 0.99])
def test_velocities_as_they_are_drawn_are_recognised(prior, share):
    velocities = drawn(straightened(prior, share).gram.grouped("tensor")[0])
    found = watched(prior, velocities, (0, 2, 4, 6, 8)).share
    assert found == 0.0 if share == 0 else found >= 0.9


def test_straightness_fades(prior):
    """Lines at first, the prior's own later."""
    own = prior.gram.grouped("tensor")[0]
    straight, rough = drawn(straightened(prior, 0.99).gram.grouped("tensor")[0]), drawn(own)
    path = (0, 1, 2, 3)
    assert watched(prior, straight, path).share >= 0.5
    assert watched(prior, np.concatenate([straight[:4], rough[4:]]), (*path, 5, 7, 9)).share == 0.0


def test_what_is_no_number_teaches_nothing(prior):
    seen = Straightness(prior)
    for products in (np.zeros((3, 3)), np.full((3, 3), np.nan)):
        assert seen.saw([4, 2, 0], products) is prior
    assert seen.saw([0], np.ones((1, 1))) is prior
    assert seen.saw([4, 2, 0], np.ones((1, 1))) is prior, "the others were of another shape"
    assert not seen.scores.any()
    assert SHARES[0] == 0


def test_weights_after_others_make_up_for_what_those_have_left():
    """The errors of the latents, by explicit sums: with other weights before, what follows is as small as it can be."""
    v = drawn(calibration(shipped()).at(LEVELS).gram.grouped("tensor")[0], 500)
    gram, response = Gram(LEVELS, (v @ v.T)[None, None], 500), Flow.euler(LEVELS).response
    path, begin = (0, 1, 4, 7, 10), 4

    def left(weights, step):
        """|D| of the latents after a step."""
        given, computed = [], []
        for i in range(step + 1):
            computed = [i, *computed] if i in path else computed
            w = weights.get(i)
            given.append(v[i] if w is None else np.tensordot(w[:, 0, 0], v[computed[: len(w)]], 1))
        return np.linalg.norm(sum(response[step + 1][m] * (given[m] - v[m]) for m in range(step + 1)))

    own = solver_weights(gram, path, response, per="tensor")
    again = solver_weights(gram, path, response, per="tensor", given=[own.get(i) for i in range(begin)])
    assert all(np.allclose(again[i], own[i], rtol=1e-9) for i in again)
    assert min(again) == begin
    others = {i: 0.8 * own[i] for i in own if i < begin}
    found = solver_weights(gram, path, response, per="tensor", given=[others.get(i) for i in range(begin)])
    for step in found:
        made = {**others, **found}
        least = left(made, step)
        for k in range(len(found[step])):
            for change in (-1e-3, 1e-3):
                moved = found[step].copy()
                moved[k] += change
                assert left({**made, step: moved}, step) >= least


class Lines(torch.nn.Module):
    """A model whose velocities are a straight line in the level, whatever the latents are."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.a, self.b = (torch.randn(1, 4, 16, 16, generator=draw) for _ in range(2))

    def forward(self, x, t, condition):
        return self.a + (t - 0.5) * 2 * self.b


def looped(method):
    levels = tuple(1 - i / 30 for i in range(31))
    denoiser = vaccel.Denoiser(Lines(), method=method)
    x = torch.zeros(1, 4, 16, 16)
    with denoiser.run(30, flow=Flow.euler(levels)) as run:
        for i, (s, following) in enumerate(itertools.pairwise(levels)):
            x = x + (following - s) * run.step(i, s, x, None)
    return x, run.trace


def test_a_run_on_lines_comes_close_to_the_full_one():
    full, _ = looped(vaccel.Schedule(range(30), num_steps=30, reuse="output"))
    method = vaccel.Forecast.prior(8)
    made, trace = looped(method)
    plain, before = looped(dataclasses.replace(method, adapt=False))
    assert (made - full).norm() < 0.3 * (plain - full).norm()
    assert trace.timeline() == before.timeline()
    assert [s.metrics["straight"] for s in trace.steps if "straight" in s.metrics][-1] > 0
    assert not any("straight" in s.metrics for s in before.steps)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_a_run_by_the_prior_can_be_had_again(guidance):
    """Its weights are in its trace, whatever they have followed; the guard may watch too."""
    pipe = tiny.wan_pipeline()
    for guard in (None, 1.2):
        with vaccel.accelerate(pipe, vaccel.Forecast.prior(5, guard=guard)) as handle:
            made = tiny.latents(pipe, steps=STEPS, guidance=guidance)
            trace = handle.trace
        assert sum("straight" in s.metrics for s in trace.steps) >= 4
        with vaccel.accelerate(pipe, trace.as_schedule()):
            assert torch.equal(tiny.latents(pipe, steps=STEPS, guidance=guidance), made)
