"""The loops of ``oracle_forecast`` held against cases worked out by hand; no method is run here."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy import ndarray
from oracle_forecast import (
    banded_coefficients,
    banded_forecast,
    banded_latent_error,
    bands,
    best_paths,
    coefficients,
    cosine,
    ddim_step,
    edge_error,
    euler_step_in_flow_space,
    flow_sigma,
    flow_space,
    forecast_error,
    forecast_from,
    known_after,
    latent_error,
    paths,
    run,
    run_guided,
    score,
    uncalibrated,
)

SIGMAS = [1.0, 0.9, 0.75, 0.6, 0.5, 0.2, 0.0]  # six steps, unevenly spaced

both_groups = pytest.mark.parametrize("groups", ["tensor", "channel"])


def noise(*shape: int, seed: int = 0) -> ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def line_in_sigma(samples: int, channels: int, n: int) -> ndarray:
    p, q = noise(2, samples, channels, n)
    return np.stack([p + sigma * q for sigma in SIGMAS[:-1]], axis=1)


def one_sample(*rows: list[float]) -> ndarray:
    """One sample of one channel."""
    return np.array(rows, dtype=float)[None, :, None, :]


def apart(*weights: float) -> tuple[ndarray, list[float]]:
    """Velocities at right angles to each other, so that all forecasts are zero, under steps of one half.

    Skipping the steps i, j, ... on one edge then costs sqrt(weights[i]^2 + weights[j]^2 + ...).
    """
    steps = len(weights)
    return one_sample(*np.diag([2 * w for w in weights])), [0.5 * (steps - i) for i in range(steps + 1)]


def test_one_known_step_by_hand() -> None:
    v = one_sample([1, 2], [2, 5], [0, 0])
    assert coefficients(v, [0], 1, "tensor") == pytest.approx(np.array([[12 / 5]]))  # 12 = 1*2 + 2*5, 5 = 1 + 4
    # v_1 - 12/5 v_0 = (-0.4, 0.2), over a step of -0.5
    assert latent_error(v, [1.0, 0.8, 0.3, 0.0], [0], 2, "tensor") == pytest.approx(0.5 * math.sqrt(0.2))


def test_two_known_steps_newest_first() -> None:
    v = one_sample([1, 0, 0], [0, 1, 0], [7, -3, 5], [0, 0, 0])
    assert coefficients(v, [1, 0], 2, "tensor")[:, 0] == pytest.approx([-3, 7])
    assert coefficients(v, [0, 1], 2, "tensor")[:, 0] == pytest.approx([7, -3])
    assert latent_error(v, [1.0, 0.9, 0.8, 0.4, 0.0], [1, 0], 3, "tensor") == pytest.approx(0.4 * 5)


def test_groups_and_samples_by_hand() -> None:
    # One channel doubles and one is halved; a weight for both lies between.
    v = np.array([[[[1.0], [2.0]], [[2.0], [1.0]], [[0.0], [0.0]]]])
    assert coefficients(v, [0], 1, "channel") == pytest.approx(np.array([[2.0, 0.5]]))
    assert coefficients(v, [0], 1, "tensor") == pytest.approx(np.array([[4 / 5]]))
    sigmas = [3.0, 2.0, 1.0, 0.0]
    assert latent_error(v, sigmas, [0], 2, "channel") == pytest.approx(0, abs=1e-12)
    assert latent_error(v, sigmas, [0], 2, "tensor") == pytest.approx(math.sqrt(1.2**2 + 0.6**2))
    # Two samples (1 -> 2, 2 -> 1) share a weight; the mean is over samples, not over elements.
    two = v.transpose(2, 1, 0, 3)
    assert coefficients(two, [0], 1, "channel") == pytest.approx(np.array([[4 / 5]]))
    assert latent_error(two, sigmas, [0], 2, "tensor") == pytest.approx(math.sqrt((1.2**2 + 0.6**2) / 2))
    # The same sample again changes nothing.
    assert latent_error(np.concatenate([v, v]), sigmas, [0], 2, "tensor") == pytest.approx(math.sqrt(1.2**2 + 0.6**2))


def test_errors_of_two_steps_may_cancel() -> None:
    v = one_sample([1, 0], [1, 1], [1, -1], [0, 0])
    assert latent_error(v, [1.0, 0.75, 0.5, 0.25, 0.0], [0], 3, "tensor") == pytest.approx(0, abs=1e-12)
    assert latent_error(v, [1.0, 0.75, 0.5, 0.0, 0.0], [0], 3, "tensor") == pytest.approx(0.25)


@both_groups
def test_a_line_in_sigma_is_recovered(groups: str) -> None:
    v = line_in_sigma(3, 2, 5)
    for known, target in [((1, 0), 2), ((3, 1), 4), ((2, 0), 5)]:
        f1, f2 = known
        newer = (SIGMAS[target] - SIGMAS[f2]) / (SIGMAS[f1] - SIGMAS[f2])
        weights = coefficients(v, known, target, groups)
        np.testing.assert_allclose(weights, np.broadcast_to([[newer], [1 - newer]], weights.shape), atol=1e-10)
        np.testing.assert_allclose(forecast_from(v, known, weights), v[:, target], atol=1e-12)
        straight = uncalibrated([v[:, f1], v[:, f2]], SIGMAS, known, target, damping=1.0)
        np.testing.assert_allclose(straight, v[:, target], atol=1e-12)
    assert latent_error(v, SIGMAS, (1, 0), 5, groups) == pytest.approx(0, abs=1e-12)
    assert latent_error(v, SIGMAS, (0,), 5, groups) > 0.1
    # A third known step on the same line: the weights are not unique, the forecast is.
    assert latent_error(v, SIGMAS, (2, 1, 0), 5, groups) == pytest.approx(0, abs=1e-12)


@both_groups
def test_what_the_fit_leaves_is_at_right_angles_to_the_known(groups: str) -> None:
    v = noise(3, 6, 4, 7)
    for known in [(2,), (2, 0), (3, 2, 0)]:
        left = v[:, 5] - forecast_from(v, known, coefficients(v, known, 5, groups))
        for f in known:
            products = (left * v[:, f]).sum(axis=(0, 2))
            assert (products.sum() if groups == "tensor" else products) == pytest.approx(0, abs=1e-12)


def test_edge_error_takes_the_gain_of_its_end() -> None:
    v, error_growth = noise(2, 6, 2, 5), [9.0, 8.0, 4.0, 2.0, 0.5, 0.1]
    off = latent_error(v, SIGMAS, (1, 0), 4, "channel")
    assert edge_error(v, SIGMAS, (1, 0), 4, "channel", error_growth) == 0.5 * off
    assert edge_error(v, SIGMAS, (1, 0), 2, "channel", error_growth) == 0  # neighbours


def test_scores() -> None:
    assert score([1.0, 3.0, 2.0], "leximax") == (3, 2, 1)
    assert score([1.0, 3.0, 2.0], "sum") == (6,)
    assert score([1.0, 3.0, 2.0], "squares") == (14,)
    assert score([2.0, 3.0], "leximax") < score([1.0, 2.0, 3.0], "leximax")  # a prefix
    assert score([3.0, 2.0, 2.0], "leximax") > score([3.0, 2.0, 1.9], "leximax")  # the first two being equal
    assert score([0.1] * 3 + [0.7], "sum") == score([0.7] + [0.1] * 3, "sum")


def test_paths_and_what_they_know() -> None:
    assert paths(4, 3, 3) == [(0, 1, 2), (0, 1, 3), (0, 2, 3)]
    assert paths(5, 3, 2) == [(0, 1, 3), (0, 2, 3), (0, 2, 4)]
    assert paths(5, 2, 3) == [(0, 2), (0, 3)]
    assert paths(5, 2, 2) == []
    assert sum(len(paths(9, budget, 8)) for budget in range(2, 10)) == 2**8 - 1
    assert known_after([0, 2, 5], 2) == (5, 2)
    assert known_after([0], 2) == (0,)


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        # Skipped: {1}, {3} -> 3.1 and 3;  {2, 3} -> sqrt(10) and 0;  {1, 2} -> sqrt(10.61) and 0.
        ((1, 3.1, 1, 3, 9), {"leximax": (0, 2, 4), "sum": (0, 1, 4), "squares": (0, 1, 4)}),
        # Skipped: {1}, {3} -> 3.01 and 3;  {2, 3} -> sqrt(18.67) and 0;  {1, 2} -> sqrt(18.61) and 0.
        ((1, 3, 3.1, 3.01, 9), {"leximax": (0, 2, 4), "sum": (0, 3, 4), "squares": (0, 2, 4)}),
    ],
)
def test_objectives_differ(weights: tuple[float, ...], chosen: dict[str, tuple[int, ...]]) -> None:
    v, sigmas = apart(*weights)
    for objective, path in chosen.items():
        best = best_paths(v, sigmas, [1.0] * 5, 1, 4, "tensor", objective)
        assert best[3][0] == path
        expected = [math.sqrt(sum(weights[i] ** 2 for i in range(a + 1, b))) for a, b in pairwise((*path, 5))]
        assert best[3][1] == pytest.approx(sorted(expected, reverse=True))
        assert best[5] == ((0, 1, 2, 3, 4), [0, 0, 0, 0, 0])
        assert best[2][0] == (0, 4)
        assert best[2][1] == pytest.approx([math.sqrt(sum(w * w for w in weights[1:4])), 0])


def test_gaps_and_gains_bear_on_the_path() -> None:
    v, sigmas = apart(1, 3.1, 1, 3, 9)
    flat = best_paths(v, sigmas, [1.0] * 5, 1, 4, "tensor", "sum")
    assert sorted(flat) == [2, 3, 4, 5]
    assert flat[3][0] == (0, 1, 4)
    narrow = best_paths(v, sigmas, [1.0] * 5, 1, 2, "tensor", "sum")
    assert sorted(narrow) == [3, 4, 5]
    assert narrow[3][0] == (0, 2, 4)
    early = best_paths(v, sigmas, [1.0, 1.0, 1.0, 0.5, 1.0], 1, 4, "tensor", "sum")
    assert early[3][0] == (0, 3, 4)
    assert early[3][1] == pytest.approx([0.5 * math.sqrt(10.61), 0, 0])
    assert flat[4][0] == (0, 1, 3, 4)  # the lightest step alone is skipped
    assert flat[4][1] == pytest.approx([1, 0, 0, 0])
    light, sigmas = apart(1, 3.1, 1, 3, 0.5)
    last = best_paths(light, sigmas, [1.0] * 5, 1, 4, "tensor", "sum")
    assert last[4][0] == (0, 1, 2, 3)  # where that is the last one, nothing is computed at the end
    assert last[4][1] == pytest.approx([0.5, 0, 0, 0])


def test_two_known_steps_bear_on_the_path() -> None:
    """On a line in sigma everything after the second computed step is free: compute the first two."""
    v = line_in_sigma(2, 2, 4)
    best = best_paths(v, SIGMAS, [1.0] * 6, 2, 5, "channel", "leximax")
    assert best[2][0] == (0, 1)
    assert best[2][1] == pytest.approx([0, 0], abs=1e-12)
    alone = best_paths(v, SIGMAS, [1.0] * 6, 1, 5, "channel", "leximax")
    assert alone[2][1][0] > 0.1
    assert alone[3][1][0] > 1e-2


@both_groups
@pytest.mark.parametrize("objective", ["leximax", "sum", "squares"])
def test_no_path_beats_the_best(groups: str, objective: str) -> None:
    v, error_growth = noise(2, 6, 2, 5), [4.0, 3.0, 2.0, 1.0, 0.5, 0.2]
    best = best_paths(v, SIGMAS, error_growth, 2, 4, groups, objective)
    assert sorted(best) == [2, 3, 4, 5, 6]
    for mask in range(1, 32):
        path = [0] + [i for i in range(1, 6) if mask >> (i - 1) & 1]
        ends = [*path[1:], 6]
        if max(b - a for a, b in zip(path, ends, strict=True)) > 4:
            continue
        known = [path[:k][::-1][:2] for k in range(1, len(path) + 1)]
        pairs = zip(known, ends, strict=True)
        errors = [edge_error(v, SIGMAS, some, end, groups, error_growth) for some, end in pairs]
        assert score(best[len(path)][1], objective) <= score(errors, objective)
        if tuple(path) == best[len(path)][0]:
            assert best[len(path)][1] == sorted(errors, reverse=True)


def test_cosines_are_orthonormal() -> None:
    for size in (1, 2, 5, 8):
        table = np.stack([cosine(size, k) for k in range(size)])
        np.testing.assert_allclose(table @ table.T, np.eye(size), atol=1e-14)
    assert cosine(2, 1) == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])


def test_bands_by_hand() -> None:
    # Two by two, one of two frequencies kept on each axis: low is the mean.
    low, high = bands(np.array([[1.0, 2.0], [3.0, 6.0]]), 0.5)
    np.testing.assert_allclose(low, np.full((2, 2), 3.0), atol=1e-14)
    np.testing.assert_allclose(high, [[-2, -1], [0, 3]], atol=1e-14)


@pytest.mark.parametrize("cutoff", [0.1, 0.25, 0.5, 1.0])
def test_bands_are_orthogonal_and_add_up(cutoff: float) -> None:
    x, y = noise(2, 3, 2, 6, 5)
    low, high = bands(x, cutoff)
    np.testing.assert_allclose(low + high, x, atol=1e-13)
    assert (low * bands(y, cutoff)[1]).sum(axis=(-2, -1)) == pytest.approx(0, abs=1e-12)
    for name, part in [("low", low), ("high", high)]:
        again = dict(zip(("low", "high"), bands(part, cutoff), strict=True))
        np.testing.assert_allclose(again.pop(name), part, atol=1e-13)
        np.testing.assert_allclose(again.popitem()[1], 0, atol=1e-13)
    kept = {0.1: 1 * 1, 0.25: 2 * 2, 0.5: 3 * 3, 1.0: 6 * 5}[cutoff]  # rounded up: 1.5 to 2, 1.25 to 2, 2.5 to 3
    waves = np.eye(30).reshape(30, 6, 5)
    assert np.linalg.matrix_rank(bands(waves, cutoff)[0].reshape(30, 30)) == kept


def test_banded_weights() -> None:
    low, high = bands(noise(2, 1, 2, 2, 4, 6), 0.5)
    first, second, last = low + high, 2 * low - 3 * high, noise(2, 1, 2, 2, 4, 6, seed=1)
    v = np.concatenate([first, second, last], axis=1)
    weights = banded_coefficients(v, [0], 1, 0.5)
    np.testing.assert_allclose(weights["low"], [[2, 2]])
    np.testing.assert_allclose(weights["high"], [[-3, -3]])
    np.testing.assert_allclose(banded_forecast(v, [0], weights, 0.5), v[:, 1], atol=1e-12)
    sigmas = [1.0, 0.6, 0.1, 0.0]
    assert banded_latent_error(v, sigmas, [0], 2, 0.5) == pytest.approx(0, abs=1e-12)
    assert latent_error(v, sigmas, [0], 2, "channel") > 0.1
    assert banded_coefficients(v, [0], 1, 0.5, "tensor")["low"] == pytest.approx(np.array([[2.0]]))


@both_groups
def test_bands_are_as_good_as_more_channels(groups: str) -> None:
    """As they are orthogonal, the error is that of the bands set side by side, fitted each for itself."""
    v = noise(2, 6, 2, 2, 4, 3)
    low, high = bands(v, 0.5)
    parts = [latent_error(part, SIGMAS, (1, 0), 4, groups) for part in (low, high)]
    assert banded_latent_error(v, SIGMAS, (1, 0), 4, 0.5, groups) == pytest.approx(math.hypot(*parts))
    if groups == "channel":
        side = np.concatenate([low, high], axis=2)
        assert latent_error(side, SIGMAS, (1, 0), 4, groups) == pytest.approx(math.hypot(*parts))
    # With all frequencies in one band there are no bands.
    whole = banded_latent_error(v, SIGMAS, (1, 0), 4, 1.0, groups)
    assert whole == pytest.approx(latent_error(v, SIGMAS, (1, 0), 4, groups))


def test_uncalibrated_by_hand() -> None:
    newer, older = np.array([2.0, 4.0]), np.array([1.0, 8.0])
    sigmas = [1.0, 0.8, 0.5, 0.0]
    # (0.5 - 0.8) / (0.8 - 1.0) = 1.5, halved
    np.testing.assert_allclose(uncalibrated([newer, older], sigmas, (1, 0), 2, 0.5), [2.75, 1.0])
    np.testing.assert_allclose(uncalibrated([newer, older], sigmas, (1, 0), 2, 0.0), newer)
    np.testing.assert_allclose(uncalibrated([newer], sigmas, (1,), 2, 0.5), newer)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_flow_space_and_ddim(kind: str) -> None:
    """DDIM is Euler's method along eps - x0, for any alphas and for predictions that are no truth."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        a, b = rng.uniform(0.05, 1.5, size=2)
        alpha, sigma, alpha2, sigma2 = math.cos(a), math.sin(a), math.cos(b), math.sin(b)
        x, prediction = rng.standard_normal((2, 3, 4))
        x0, eps, velocity = flow_space(alpha, sigma, x, prediction, kind)
        np.testing.assert_allclose(alpha * x0 + sigma * eps, x, atol=1e-12)
        meant = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[kind]
        np.testing.assert_allclose(meant, prediction, atol=1e-12)
        np.testing.assert_allclose(velocity, eps - x0)
        ddim = ddim_step(alpha, sigma, alpha2, sigma2, x0, eps)
        euler = euler_step_in_flow_space(alpha, sigma, alpha2, sigma2, x, velocity)
        np.testing.assert_allclose(euler, ddim, rtol=1e-12, atol=1e-12)


def test_flow_space_at_the_ends() -> None:
    x, prediction = noise(2, 5)
    assert flow_sigma(0.0, 1.0) == 1
    assert flow_sigma(1.0, 0.0) == 0
    assert flow_sigma(0.6, 0.8) == pytest.approx(4 / 7)
    # Pure noise: v = -x0, so a v-prediction still tells the sample; an epsilon-prediction does not.
    x0, eps, _ = flow_space(0.0, 1.0, x, prediction, "v_prediction")
    np.testing.assert_allclose(x0, -prediction)
    np.testing.assert_allclose(eps, x)
    with pytest.raises(np.linalg.LinAlgError):
        flow_space(0.0, 1.0, x, prediction, "epsilon")


def test_flow_prediction_is_itself() -> None:
    x0, eps = noise(2, 3, 4)
    for sigma in (1.0, 0.7, 0.2):
        x = (1 - sigma) * x0 + sigma * eps
        found = flow_space(1 - sigma, sigma, x, eps - x0, "flow_prediction")
        for value, expected in zip(found, (x0, eps, eps - x0), strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-12)
        assert flow_sigma(1 - sigma, sigma) == pytest.approx(sigma)


def curved(x: ndarray, i: int) -> ndarray:
    return np.sin(3 * x + i) - 0.5 * x


def other(x: ndarray, i: int) -> ndarray:
    return np.cos(2 * x) + 0.1 * i


def test_run_by_hand() -> None:
    x, sigmas = np.array([[[1.0], [2.0]]]), [1.0, 0.5, 0.25, 0.0]
    done = run(lambda x, i: 10.0**i * x, x, sigmas, [0, 1], lambda i, known: np.array([[1.0, 2.0], [4.0, 0.0]]))
    # v_0 = (1, 2) leads to (0.5, 1);  v_1 = (5, 10) to (-0.75, -1.5);  v_2 = (1*5 + 4*1, 2*10 + 0*2) to the end
    np.testing.assert_allclose([v[0, :, 0] for v in done.velocities], [[1, 2], [5, 10], [9, 20]])
    np.testing.assert_allclose(done.latents[0, :, 0], [-3.0, -6.5])


def test_run_with_every_step_computed_asks_for_no_weights() -> None:
    x = start = noise(2, 3, 4)
    for i in range(6):
        x = x + (SIGMAS[i + 1] - SIGMAS[i]) * curved(x, i)
    np.testing.assert_array_equal(run(curved, start, SIGMAS, range(6), None).latents, x)


def test_run_knows_the_newest_computed_steps() -> None:
    asked = []

    def weights(i: int, known: tuple[int, ...]) -> ndarray:
        asked.append((i, known))
        return np.ones((len(known), 1))

    run(curved, noise(1, 2, 3), SIGMAS, [0, 2, 3], weights)
    assert asked == [(1, (0,)), (4, (3, 2)), (5, (3, 2))]
    run(curved, noise(1, 2, 3), SIGMAS, [0, 2, 3, 5], weights, order=3)
    assert asked[3:] == [(1, (0,)), (4, (3, 2, 0))]


@both_groups
def test_latent_error_is_what_a_run_is_off(groups: str) -> None:
    """For velocities that do not depend on the latents, whose error_growth are one."""
    v, x = noise(3, 6, 2, 5), noise(3, 2, 5, seed=1)
    for path in [(0, 1, 4, 5), (0, 3, 4, 5), (0, 5)]:  # one edge each that skips
        full = run(lambda x, i: v[:, i], x, SIGMAS, range(6), None).latents
        fast = run(lambda x, i: v[:, i], x, SIGMAS, path, lambda i, known: coefficients(v, known, i, groups)).latents
        edges = [latent_error(v, SIGMAS, path[:k][::-1][:2], path[k], groups) for k in range(1, len(path))]
        assert np.linalg.norm(full - fast) / math.sqrt(3) == pytest.approx(sum(edges))


@both_groups
def test_forecasting_both_branches_is_forecasting_the_guided(groups: str) -> None:
    x, path, scale = noise(2, 3, 4), (0, 1, 3, 5), 5.0

    def weights(i: int, known: tuple[int, ...]) -> ndarray:
        return noise(len(known), {"tensor": 1, "channel": 3}[groups], seed=i)

    def guided(x: ndarray, i: int) -> ndarray:
        return other(x, i) + scale * (curved(x, i) - other(x, i))

    two, one = run_guided(curved, other, scale, x, SIGMAS, path, weights), run(guided, x, SIGMAS, path, weights)
    np.testing.assert_allclose(two.velocities, one.velocities, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(two.latents, one.latents, rtol=1e-9, atol=1e-9)


def test_forecast_error_by_hand() -> None:
    v = one_sample([1, 0], [2, 1], [0, 0])  # the weight is 2, what is left is (0, 1)
    found = forecast_error(v, one_sample([1, 1], [5, 6], [9, 9])[0], [0], 1, "tensor")
    assert found == pytest.approx((5.0, 1.0, 5.0))  # (5, 6) - 2 (1, 1) = (3, 4)


@both_groups
def test_calibration_forecasts_itself_as_expected(groups: str) -> None:
    v = noise(4, 6, 2, 5)
    found = [forecast_error(v, trajectory, (3, 1), 5, groups) for trajectory in v]
    assert sum(s.ratio**2 for s in found) == pytest.approx(4)
    assert len({s.expected for s in found}) == 1
    # Over a step of one, the expected forecast error is the latents' error after skipping that step.
    sigmas = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    assert forecast_error(v, v[0], (3, 1), 4, groups).expected == pytest.approx(
        latent_error(v, sigmas, (3, 1), 5, groups)
    )
