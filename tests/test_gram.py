"""Closed forms over inner products against least squares on the full vectors, and the paths found with them.

The implementation solves (A + ridge) a = b, A the known velocities' products and ridge = RIDGE trace(A) / K.  Against
a = A^-1 b that changes the weights by at most ridge / (least eigenvalue) of their length, and the square of what is
left by something between 0 and ridge |sum_i ds_i a_i|^2; ``bounds`` works both out, and rounding is added to them.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import oracle_forecast as oracle
import pytest
import torch

from vaccel.planning import paths
from vaccel.planning.calibration import packed, unpacked
from vaccel.planning.gram import RIDGE, Gram, inner_products, low_frequencies
from vaccel.planning.packing import added
from vaccel.planning.paths import Plan, edge_errors, plans, states

SIGMAS = (1.0, 0.93, 0.85, 0.7, 0.62, 0.45, 0.3, 0.18, 0.05, 0.0)
STEPS = len(SIGMAS) - 1
GAINS = [1.5, 1.4, 1.2, 1.0, 1.1, 0.9, 0.9, 0.8, 0.7]
#: What fp64 may add to a sum of squares, as a share of its largest term, over a few hundred of them.
ROUNDING = 1e-13
KNOWN = [(0,), (3, 2), (4, 1), (5, 3, 0)]

groups = pytest.mark.parametrize("per", ["tensor", "channel"])


def trajectories(samples: int = 3, *, seed: int = 0, correlated: bool = False, steps: int = STEPS) -> np.ndarray:
    """[S, T, C, F, H, W], random; ``correlated`` as a run's are, each close to the last."""
    rng = np.random.default_rng(seed)
    v = rng.standard_normal((samples, steps, 3, 2, 4, 5))
    if not correlated:
        return v
    scale = np.array([1.0, 3.0, 0.2])[:, None, None, None]
    pace = rng.uniform(0.02, 0.3, steps)[:, None, None, None, None]
    return scale * (rng.standard_normal((samples, 1, 3, 2, 4, 5)) + np.cumsum(pace * v, axis=1))


def measured(v: np.ndarray, bands: int = 1, sigmas=SIGMAS) -> Gram:
    """The Gram matrices of trajectories [S, T, C, F, H, W], by explicit sums."""
    parts = oracle.bands(v, 0.5) if bands == 2 else (v,)
    products = np.stack([np.einsum("stcfhw,sucfhw->ctu", part, part) / len(v) for part in parts])
    return Gram(tuple(sigmas), products, v[0, 0].size)


def bounds(found: Gram, per: str, known, steps) -> tuple[float, float]:
    """(of weights: relative, the worst group's; of the square of an error: absolute), what the ridge may do."""
    known, steps = list(known), list(steps)
    weights, square = 0.0, 0.0
    for products in found.grouped(per):
        own = products[np.ix_(known, known)]
        ridge = RIDGE * np.trace(own) / len(known)
        weights = max(weights, (ridge + ROUNDING * np.trace(own)) / np.linalg.eigvalsh(own)[0])
        together = np.linalg.solve(own, products[np.ix_(known, steps)]) @ found.widths[steps]
        square += ridge * together @ together
    return weights, square / found.elements


def scale(found: Gram, steps) -> float:
    """The square of the error with nothing forecast at all, which rounding is a share of."""
    ds = np.abs(found.widths[list(steps)])
    own = np.abs(found.grouped("tensor")[0][np.ix_(list(steps), list(steps))])
    return float(ds @ own @ ds) / found.elements


@groups
@pytest.mark.parametrize("correlated", [False, True], ids=["noise", "a run"])
@pytest.mark.parametrize("known", KNOWN)
def test_weights_are_those_of_least_squares(known, correlated, per):
    v = trajectories(correlated=correlated)
    found = measured(v)
    for step in range(known[0] + 1, STEPS):
        weights, expected = found.weights(known, step, per), oracle.coefficients(v, known, step, per)
        assert weights.shape == (len(known), 1, expected.shape[1])
        allowed, _ = bounds(found, per, known, [step])
        assert allowed < 1e-5, "the case is too ill-conditioned to say much"
        off = np.linalg.norm(weights[:, 0] - expected, axis=0) / np.linalg.norm(expected, axis=0)
        assert off.max() <= allowed


@pytest.mark.parametrize(("per", "group"), [("band", "tensor"), ("channel, band", "channel")])
@pytest.mark.parametrize("known", KNOWN[:3])
def test_weights_by_band(known, per, group):
    v = trajectories()
    found = measured(v, bands=2)
    allowed, _ = bounds(found, per, known, [6])
    weights, expected = found.weights(known, 6, per), oracle.banded_coefficients(v, known, 6, 0.5, group)
    for band, name in enumerate(("low", "high")):
        np.testing.assert_allclose(weights[:, band], expected[name], rtol=0, atol=allowed * np.abs(weights).max() * 2)
    assert np.abs(weights[:, 0] - weights[:, 1]).max() > 0.01, "the bands differ here"
    # Weights that the bands share are those without bands.
    np.testing.assert_allclose(found.weights(known, 6, "channel"), measured(v).weights(known, 6), rtol=1e-9)


@groups
@pytest.mark.parametrize("correlated", [False, True], ids=["noise", "a run"])
@pytest.mark.parametrize("known", KNOWN)
def test_latent_errors(known, correlated, per):
    v = trajectories(correlated=correlated)
    found = measured(v)
    elements = v[0, 0].size
    for end in range(known[0] + 2, STEPS):
        steps = range(known[0] + 1, end)
        expected = oracle.latent_error(v, SIGMAS, known, end, per) ** 2 / elements
        _, allowed = bounds(found, per, known, steps)
        rounding = ROUNDING * scale(found, steps)
        assert -rounding <= found.latent_error(known, end, per) ** 2 - expected <= allowed + rounding
        assert allowed < 1e-5 * expected
    assert found.latent_error(known, known[0] + 1, per) == 0


@pytest.mark.parametrize(("per", "group"), [("band", "tensor"), ("channel, band", "channel")])
@pytest.mark.parametrize("known", KNOWN[:3])
def test_latent_errors_by_band(known, per, group):
    v = trajectories(correlated=True)
    found = measured(v, bands=2)
    for end in (known[0] + 2, known[0] + 4):
        expected = oracle.banded_latent_error(v, SIGMAS, known, end, 0.5, group) ** 2 / v[0, 0].size
        steps = range(known[0] + 1, end)
        _, allowed = bounds(found, per, known, steps)
        rounding = ROUNDING * scale(found, steps)
        assert -rounding <= found.latent_error(known, end, per) ** 2 - expected <= allowed + rounding
        assert allowed < 1e-5 * expected


@groups
def test_residual_norm_is_the_expected_forecast_error(per):
    v = trajectories(correlated=True)
    found = measured(v)
    expected = oracle.forecast_error(v, v[0], (4, 2), 6, per).expected / math.sqrt(v[0, 0].size)
    assert found.residual_norm((4, 2), 6, per) == pytest.approx(expected, rel=1e-6)
    assert found.residual_norm((4, 2), 4, per) <= 2 * math.sqrt(RIDGE * found.products.sum() / found.elements), (
        "known itself"
    )


def test_two_equal_velocities_share_their_weight():
    v = trajectories()
    v[:, 3] = v[:, 1]
    weights = measured(v).weights((3, 1), 5)
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=0)[0], oracle.coefficients(v, (3,), 5, "channel")[0], rtol=1e-6)


@groups
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_edge_errors(order, corrected, per):
    v, max_gap = trajectories(correlated=True), 5
    found, elements = measured(v), math.sqrt(v[0, 0].size)
    nodes = [known for known in states(STEPS, order, max_gap) if len(known) == order]
    errors = edge_errors(found, GAINS, nodes, max_gap, per, corrected)
    assert errors.shape == (len(nodes), max_gap)
    for known, row in zip(nodes, errors, strict=True):
        for gap, error in enumerate(row, start=1):
            end = known[0] + gap
            if end > STEPS:
                assert error == math.inf
            elif gap == 1:
                assert error == 0
            else:
                expected = oracle.edge_error(v, SIGMAS, known, end, per, GAINS, corrected) / elements
                assert error == pytest.approx(expected, rel=1e-5), (known, end)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_states(order):
    """Every choice of computed steps up to one, no gap too wide, shows its newest ones; nothing else is a state."""
    steps, max_gap, expected = 7, 3, set()
    for mask in range(2 ** (steps - 1)):
        path = [0] + [i for i in range(1, steps) if mask >> (i - 1) & 1]
        if all(b - a <= max_gap for a, b in pairwise(path)):
            expected.add(oracle.known_after(path, order))
    found = states(steps, order, max_gap)
    assert set(found) >= expected
    assert len(set(found)) == len(found)
    for known in set(found) - expected:  # reachable but for the way to its oldest
        assert len(known) == order
        assert known[-1] > 0
    assert [known[0] for known in found] == sorted(known[0] for known in found)


@groups
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("objective", paths.OBJECTIVES)
@pytest.mark.parametrize(("order", "max_gap"), [(1, 8), (2, 8), (2, 3), (3, 4)])
def test_plans_are_the_best_of_all_paths(order, max_gap, objective, corrected, per):
    v = trajectories(2, correlated=True, seed=3)
    expected = oracle.best_paths(v, SIGMAS, GAINS, order, max_gap, per, objective, corrected)
    settings = {"order": order, "per": per, "corrected": corrected}
    made = measured(v)
    found = plans(made, GAINS, max_gap=max_gap, objective=objective, **settings)
    assert sorted(found) == sorted(expected)
    elements = math.sqrt(v[0, 0].size)
    for budget, (path, errors) in expected.items():
        assert found[budget].full_steps == path
        assert [e * elements for e in sorted(found[budget].errors, reverse=True)] == pytest.approx(errors, rel=1e-5)
        assert found[budget].predicted * elements == pytest.approx(math.hypot(*errors), rel=1e-5)
        along = paths.path_errors(made, GAINS, path, **settings)
        assert along == pytest.approx(found[budget].errors, rel=1e-9, abs=1e-12)


def test_objectives_choose_differently():
    """Or the tests above would hold for any one of them."""
    found = measured(trajectories(2, correlated=True, seed=3))
    chosen = {tuple(p.full_steps for p in plans(found, GAINS, objective=o).values()) for o in paths.OBJECTIVES}
    assert len(chosen) == 3


def test_plans_by_band_are_those_of_more_channels():
    v = trajectories(2, correlated=True)
    side = np.concatenate(oracle.bands(v, 0.5), axis=2)
    expected = oracle.best_paths(side, SIGMAS, GAINS, 2, 8, "channel", "leximax")
    found = plans(measured(v, bands=2), GAINS, order=2, max_gap=8, per="channel, band", objective="leximax")
    assert {b: p.full_steps for b, p in found.items()} == {b: path for b, (path, _) in expected.items()}
    assert found[3].errors != plans(measured(v), GAINS, max_gap=8, objective="leximax")[3].errors


def test_a_hundred_steps():
    steps, max_gap = 100, 10
    levels = tuple(float(s) for s in np.linspace(1, 0, steps + 1) ** 1.5)
    v = trajectories(1, correlated=True, steps=steps)
    found, error_growth = measured(v, sigmas=levels), [math.exp(2 - 4 * i / steps) for i in range(steps)]
    made = plans(found, error_growth, order=2, max_gap=max_gap)
    assert sorted(made) == list(range(10, 101))
    for budget, plan in made.items():
        assert len(plan.full_steps) == budget
        assert plan.full_steps[0] == 0
        assert all(0 < b - a <= max_gap for a, b in pairwise((*plan.full_steps, steps)))
        assert len(plan.errors) == budget
    for budget in (11, 20, 63):
        path = made[budget].full_steps
        known, ends = [oracle.known_after(path[:k], 2) for k in range(1, budget + 1)], (*path[1:], steps)
        growth = [*error_growth, 1.0]
        expected = [growth[end] * found.latent_error(k, end) for k, end in zip(known, ends, strict=True)]
        assert made[budget].errors == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert made[steps].predicted == 0
    assert made[11].predicted > made[20].predicted > made[63].predicted > 0


def test_predicted():
    assert Plan((0, 2, 4), (3.0, 4.0)).predicted == 5
    assert Plan((0,), ()).predicted == 0


def test_what_is_refused():
    found = measured(trajectories())
    for per, message in [("pixel", "per must be one of 'tensor', 'channel', 'band'"), ("band", "frequency bands")]:
        with pytest.raises(ValueError, match=message):
            found.weights((0,), 1, per)
        with pytest.raises(ValueError, match=message):
            plans(found, GAINS, per=per)
    with pytest.raises(ValueError, match="objective must be one of 'leximax', 'sum', 'squares', got 'worst'"):
        plans(found, GAINS, objective="worst")
    for settings in ({"order": 0}, {"max_gap": 0}):
        with pytest.raises(ValueError, match="order and max_gap must be >= 1"):
            plans(found, GAINS, **settings)
    with pytest.raises(ValueError, match="8 values"):
        plans(found, GAINS[1:])


# --- what is measured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clips", [1, 3])
@pytest.mark.parametrize(("shape", "axis"), [((4, 2, 5, 6), 1), ((2, 4, 5, 6), 2), ((7, 6), -1), ((7, 6), 2)])
def test_inner_products(shape, axis, clips):
    v = torch.randn(5, clips, *shape, generator=torch.Generator().manual_seed(0))
    found = inner_products(v, axis, 1)
    channels = v.shape[1:][axis]
    assert found.shape == (1, channels, 5, 5)
    assert found.dtype == np.float64
    wide = np.moveaxis(v.double().numpy(), axis + 1 if axis > 0 else axis, 2)  # [T, B, C, ...]
    for c in range(channels):
        for i in range(5):
            for j in range(5):
                expected = float((wide[i, :, c] * wide[j, :, c]).sum()) / clips
                assert found[0, c, i, j] == pytest.approx(expected, rel=1e-12, abs=1e-12)
    np.testing.assert_array_equal(inner_products(v, axis, 1), found)


@pytest.mark.parametrize("axis", [1, 2])
def test_inner_products_by_band(axis):
    shape = (4, 2, 5, 6) if axis == 1 else (2, 4, 5, 6)
    v = torch.randn(3, 2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = inner_products(v, axis, 2)
    assert found.shape == (2, 4, 3, 3)
    for band, part in enumerate(oracle.bands(v.numpy(), 0.5)):
        wide = np.moveaxis(part, axis + 1, 2)
        for c in range(4):
            expected = [[(a[:, c] * b[:, c]).sum() / 2 for b in wide] for a in wide]
            np.testing.assert_allclose(found[band, c], expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(found.sum(axis=0), inner_products(v, axis, 1)[0], rtol=1e-11, atol=1e-11)


def test_inner_products_make_the_gram_of_the_oracle():
    """One after the other, runs of one clip add up to what a batch of them has as its mean."""
    v = trajectories(3, correlated=True)
    every = torch.from_numpy(v).movedim(0, 1)  # [T, S, C, ...]
    alone = sum(inner_products(every[:, s : s + 1], 1, 2) for s in range(3)) / 3
    np.testing.assert_allclose(alone, inner_products(every, 1, 2), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(alone, measured(v, bands=2).products, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (7, 8)])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_low_frequencies(size, share):
    x = np.random.default_rng(2).standard_normal((3, *size))
    low, _ = oracle.bands(x, share)
    rows, columns = (low_frequencies(n, share) for n in size)
    np.testing.assert_allclose(rows @ x @ columns, low, atol=1e-13)
    np.testing.assert_allclose(rows @ rows, rows, atol=1e-13)


def test_packed_is_exact():
    rng = np.random.default_rng(3)
    for shape in [(1, 1, 1), (3, 4, 4), (2, 4, 21, 21)]:
        products = rng.standard_normal(shape) * 10.0 ** rng.integers(-300, 300, (*shape[:-2], 1, 1))
        products = products + products.swapaxes(-1, -2)
        text = packed(products)
        assert isinstance(text, str)
        np.testing.assert_array_equal(unpacked(text, shape), products)
        np.testing.assert_array_equal(unpacked(added([text, packed(2 * products)]), shape), 3 * products)
    assert len(packed(np.ones((16, 50, 50)))) < 16 * 50 * 51 / 2 * 8 * 1.34, "half of a symmetric matrix"
