"""The loops of ``oracle_beyond`` against ``oracle_forecast`` and cases worked out by hand; no method is run here."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_beyond import relative, run_changing
from oracle_forecast import latent_error, run_guided

SIGMAS = [1.0, 0.9, 0.75, 0.6, 0.5, 0.2, 0.0]


def halves(i, known):
    return np.full((len(known), 1), 1 / len(known))


def test_what_does_not_change_is_a_guided_run():
    branches = {"cond": lambda x, i: np.sin(2 * x + i), "uncond": lambda x, i: np.cos(x - i)}
    x, path = np.random.default_rng(0).standard_normal((1, 2, 5)), (0, 1, 4)
    ours, forwards = run_changing(lambda i: branches, lambda i: 3.0, x, SIGMAS, path, halves)
    usual = run_guided(branches["cond"], branches["uncond"], 3.0, x, SIGMAS, path, halves)
    np.testing.assert_allclose(ours.latents, usual.latents, rtol=1e-12)
    assert forwards == [2, 2, 0, 0, 2, 0]


def test_a_branch_that_comes_back_by_hand():
    """It is at steps 0, 3 and 5 that the second branch is there: computed, computed and forecast from both."""
    branches = {"cond": lambda x, i: np.zeros_like(x), "uncond": lambda x, i: np.full_like(x, i)}
    there = {0, 3, 5}

    def present(i):
        return branches if i in there else {"cond": branches["cond"]}

    ours, forwards = run_changing(present, lambda i: 0.0, np.zeros((1, 1, 1)), SIGMAS, (0, 2), halves)
    assert forwards == [2, 0, 1, 1, 0, 0]
    assert [float(v.squeeze()) for v in ours.velocities] == [0, 0, 0, 3, 0, 1.5]


def test_tensors_count_alike_whatever_their_size_and_loudness():
    """The square of a joined error is the mean over the tensors of their own relative ones."""
    draw = np.random.default_rng(1)
    small, large = draw.standard_normal((1, 6, 2, 3)), 40 * draw.standard_normal((1, 6, 1, 30))
    joined = relative([small, large])
    assert joined.shape == (1, 6, 3, 30)
    elements = 36
    own = [latent_error(t, SIGMAS, (1, 0), 4, "channel") ** 2 / (t[0, 0].size * (t**2).mean()) for t in (small, large)]
    both = latent_error(joined, SIGMAS, (1, 0), 4, "channel") ** 2 / elements
    assert both == pytest.approx(sum(own) / 2)
