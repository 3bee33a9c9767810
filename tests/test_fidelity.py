"""What PSNR a predicted error means, and what is promised of it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vaccel.planning.fidelity import COUNT, SPREAD, SURE, Fidelity, place, student


def error(dB: float) -> float:  # noqa: N803  the unit's name
    return 10 ** (-dB / 20)


@pytest.mark.parametrize("freedom", [4, 5, 8, 20, 100])
def test_the_quantile_is_students(freedom):
    assert student(0.95, freedom) == pytest.approx(stats.t.ppf(0.95, freedom), rel=1e-2)


def test_a_curve_is_straight_between_its_runs_and_goes_as_the_error_beyond_them():
    known = Fidelity([[(error(40), 44.0), (error(20), 20.0), (error(30), 35.0)]])  # in any order
    for x, expected in ((20, 20), (25, 27.5), (30, 35), (38, 42.2), (40, 44), (50, 54), (10, 10)):
        assert known.at(error(x))[0] == pytest.approx(expected)


def test_the_promise_is_the_lower_of_both():
    """Many alike and two far below: Student's distribution has no such tail, so the ordered one decides."""
    values = [40.0] * 61 + [5.0]
    expected, promised = Fidelity([[(error(40), v)] for v in values]).at(error(40))
    assert expected == pytest.approx(np.mean(values))
    freedom = COUNT + len(values) - 1
    square = (COUNT * SPREAD**2 + np.sum((np.array(values) - expected) ** 2)) / freedom
    normal = expected - stats.t.ppf(0.95, freedom) * math.sqrt(square * (1 + 1 / len(values)))
    assert promised == pytest.approx(normal, rel=1e-3), "the second lowest of 62 is among the many"
    values = [40.0] * 60 + [5.0] * 4
    assert Fidelity([[(error(40), v)] for v in values]).at(error(40))[1] == 5.0
    few = Fidelity([[(error(40), v)] for v in (40.0, 41.0)])
    assert few.at(error(40))[1] < 41 - 1.6 * SPREAD, "of two prompts little is known"


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("count", [1, 10, 40, 53, 79, 200])
def test_the_place_is_the_highest_that_is_sure_enough(count, share):
    k = place(count, share)
    if k > 1:
        assert stats.binom.sf(k - 1, count, 1 - share) >= SURE
    if k < count:
        assert stats.binom.sf(k, count, 1 - share) < SURE
    # The same by what it means: the share that reaches the k-th lowest is a draw of Beta(n + 1 - k, k).
    assert k == 1 or stats.beta.sf(share, count + 1 - k, k) >= SURE


def test_nineteen_in_twenty_reach_it():
    """Of prompts as they come: normal ones, and some of which one in ten is 15 dB below the others."""
    random = np.random.default_rng(0)
    for tail in (0.0, 15.0):
        reached = []
        for _ in range(400):
            values = random.normal(40, 3, 36) - tail * (random.random(36) < 0.1)
            promised = Fidelity([[(error(40), v)] for v in values[:16]]).at(error(40))[1]
            reached.append(np.mean(values[16:] >= promised))
        # 400 draws of 20: the mean's own standard deviation is about 0.004.
        assert np.mean(reached) > 0.95 - 0.012


def test_no_more_is_promised_than_with_a_smaller_error():
    """One prompt falls over with a smaller error and not with a larger one."""
    steady = [[(error(x), x + 5.0) for x in (20, 30, 40, 50)] for _ in range(12)]
    odd = [(error(20), 25.0), (error(30), 35.0), (error(40), 22.0), (error(50), 55.0)]
    known = Fidelity([*steady, odd])
    promised = [known.at(error(x))[1] for x in range(15, 60)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(promised))
    assert known.at(error(30))[1] == pytest.approx(22.0, abs=0.5), "and not 35, the lowest there"
    assert known.at(error(30))[0] == pytest.approx(35.0), "what is expected is as it was"
    assert known.at(error(50))[1] > 40
