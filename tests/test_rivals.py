"""The rivals of ``bench/rivals``: the loop is the pipeline's own, and each formula is exact where its paper's is."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

from rivals import budcache, dpcache, easycache, l2p, meancache, seacache, spectrum, taylorseer
from rivals.loop import WHATS, Loop, Recorded, Scheduled, TooManyError, UNetDenoiser, WanDenoiser, gram

from vaccel.calibrate.samples import sample
from vaccel.demo import family, glyphs, image_family, shapes

STEPS, BUDGETS = 50, (9, 13, 17, 22, 27)
SHORT = 8  # steps of runs here


@pytest.fixture(scope="module", params=["shapes", "glyphs"])
def case(request):
    """(pipe, call, loop, a held-out caption)."""
    wan = request.param == "shapes"
    loaded, captions = (family.load(), shapes) if wan else (image_family.load(), glyphs)
    call = {**loaded.call, "num_inference_steps": SHORT}
    loop = Loop((WanDenoiser if wan else UNetDenoiser)(loaded.pipe, loaded.call, SHORT))
    return loaded.pipe, call, loop, captions.held_out_captions(1)[0]


def everything(what="output"):
    return Scheduled(range(SHORT), lambda known, step: [], what)


# -- the loop --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_all_computed_is_the_pipeline(case):
    pipe, call, loop, caption = case
    own = sample(pipe, caption, 3, call, output="pt")
    for rival in (None, everything(), everything("residual")):
        latents, count = loop.run(caption, 3, rival)
        assert count == SHORT
        assert torch.equal(loop.denoiser.decode(latents), own)


@torch.no_grad()
@pytest.mark.parametrize("what", WHATS)
def test_what_a_step_leaves_gives_its_output_back(case, what):
    """The way there and back is the identity but for rounding: a few hundred units in the last place at most."""
    _, _, loop, caption = case
    run, d = Recorded(), loop.denoiser
    loop.run(caption, 3, record=run)
    for step in (0, 3, SHORT - 1):
        seen, x, t = run.seen[step], run.x[step], d.stepper().times[step]
        again = loop.output(what, loop.kept(what, seen, x, step), x, step, t)
        # The velocity of a noise divides by alpha and takes x off again: errors grow by |a| + |b x|.
        growth = abs(d.scales[step][0]) + abs(d.scales[step][1]) if what == "velocity" else 1.0
        bound = 200 * torch.finfo(torch.float32).eps * growth * float(seen.output.abs().max() + x.abs().max())
        assert float((again - seen.output).abs().max()) <= bound


@torch.no_grad()
def test_a_grid_that_moves_nowhere_is_the_schedulers(case):
    """Both steppers take the same outputs to the same latents; rounding may add an ulp a step in DDIM's own form."""
    _, _, loop, _ = case
    d, x = loop.denoiser, loop.denoiser.noise(3)
    for factor, same in ((1.0, True), (0.9, False)):
        ends, generator = [], torch.Generator().manual_seed(0)
        outputs = torch.randn(SHORT, *x.shape, generator=generator)
        for solver in (d.stepper(), d.stepper((d.grid() * torch.linspace(1, factor, SHORT + 1)).float())):
            now = x
            for step in range(SHORT):
                now = solver(outputs[step], step, now)
            ends.append(now)
        error = float((ends[0] - ends[1]).abs().max() / ends[0].abs().max())
        assert (error < SHORT * 8 * torch.finfo(torch.float32).eps) == same


@torch.no_grad()
def test_computed_steps_are_counted_and_limited(case):
    _, _, loop, caption = case
    _, count = loop.run(caption, 3, taylorseer.taylorseer(SHORT, 4, order=1, warm=2, what="hidden", last=True))
    assert count == 4
    with pytest.raises(TooManyError):
        loop.run(caption, 3, everything(), limit=SHORT - 1)


@torch.no_grad()
def test_adaptive_rivals_compute_all_at_zero_and_few_at_infinity(case):
    _, _, loop, caption = case
    d = loop.denoiser
    shrink = [1.0] * SHORT

    def rivals(threshold):
        yield easycache.EasyCache(threshold, warm=3, steps=SHORT), 4
        yield easycache.EasyCache(threshold, warm=3, steps=SHORT, points="previous"), 4
        yield seacache.SeaCache(threshold, warm=2, longest=2, levels=d.levels, shrink=shrink), 2 + 1 + 1

    for rival, _ in rivals(0.0):
        assert loop.run(caption, 3, rival)[1] == SHORT
    for rival, least in rivals(1e9):
        assert loop.run(caption, 3, rival)[1] == least


def test_easycache_follows_its_oracle():
    """Decisions on recorded inputs and outputs, against the plain loop of the method's own tests."""
    from oracle_easycache import RELEASE
    from oracle_easycache import easycache as oracle

    times = torch.linspace(1.0, 0.05, 30)

    def model(x, t, condition):
        return torch.sin(3 * t) * condition - 0.2 * x

    x = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    shared = {"cond": torch.ones(40), "threshold": 0.04, "warmup": 4}
    for points, choices in (("computed", RELEASE), ("previous", {})):
        _, letters, _ = oracle(model, lambda v, i, x: x - 0.03 * v, x, times, **shared, **choices)
        rival, found, now, kept = easycache.EasyCache(0.04, warm=4, steps=30, points=points), "", x, None
        for i, t in enumerate(times):
            computed = rival.computes(i, now)
            v = model(now, t, shared["cond"]) if computed else now + kept
            kept = v - now if computed else kept
            rival.observe(i, now, v, computed)
            now, found = now - 0.03 * v, found + ("F" if computed else "r")
        assert found == letters
        assert 0 < found.count("r") < 25


@torch.no_grad()
@pytest.mark.parametrize("case", ["shapes"], indirect=True)  # diffusers has it for transformers alone
def test_seacache_is_diffusers(case):
    """The same latents as diffusers' hooks, which do the same sums in another order."""
    pipe, call, loop, caption = case
    from diffusers import SeaCacheConfig

    counts = set()
    for threshold, longest in ((0.1, 2), (0.25, 3), (10.0, 2)):
        rival = seacache.SeaCache(threshold, 2, longest, loop.denoiser.levels, [1.0] * SHORT)
        latents, count = loop.run(caption, 3, rival)
        config = SeaCacheConfig(threshold, retention_steps=2, max_consecutive_cached=longest)
        pipe.transformer.enable_cache(config)
        try:
            own = sample(pipe, caption, 3, call)
        finally:
            pipe.transformer.disable_cache()
        # float32 rounding, grown by at most some tens over the run: skipping otherwise moves latents by 1e-2 and more.
        assert float((latents - own).abs().max() / own.abs().max()) < 1e-4
        counts.add(count)
    assert len(counts) > 1


# -- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
def test_schedules_have_the_steps_they_say(budget):
    for warm, last, power in itertools.product((2, 3, 5), (True, False), (1.0, 1.3)):
        path = taylorseer.spaced(STEPS, budget, warm, last=last, power=power)
        assert len(set(path)) == budget
        assert path == sorted(path)
        assert path[:warm] == list(range(warm))
        assert (path[-1] == STEPS - 1) == last or budget > STEPS // 2
        assert path[-1] < STEPS
    paths = [path for warm in (3, 5) if (path := spectrum.grown(STEPS, budget, warm, 2.0))]
    assert paths
    assert {len(path) for path in paths} == {budget}


def test_spectrums_schedule_is_the_releases():
    """The authors give 14 and 10 computed steps of 50 for flex 0.75 and 3, window 2, warm-up 5."""
    assert len(spectrum.growing(50, 5, 2.0, 0.75)) == 14
    assert len(spectrum.growing(50, 5, 2.0, 3.0)) == 10
    assert spectrum.growing(10, 2, 2.0, 0.0) == [0, 1, 3, 5, 7, 9]


# -- formulas --------------------------------------------------------------------------------------------------------

KNOWN = [0, 1, 2, 5, 9, 14, 20]


def series(degree, steps=STEPS, width=7):
    """Random polynomials in the step, [steps, width]."""
    t = np.arange(steps)[:, None] / steps
    return sum(t**k * np.random.default_rng(k).standard_normal(width) for k in range(degree + 1))


def test_taylor_of_order_1_is_exact_on_lines_alone():
    for degree, exact in ((0, True), (1, True), (2, False)):
        f = series(degree)
        error = np.abs(taylorseer.taylor(KNOWN, 24, 1) @ f[KNOWN] - f[24]).max()
        assert (error < 1e-12) == exact


def test_taylor_of_order_2_on_even_steps_has_the_releases_coefficients():
    """Differences f, (f - f')/N, (f - 2f' + f'')/N^2, with the factorials of Taylor's series."""
    n, k = 4, 3
    by_hand = [k**2 / (2 * n**2), -k / n - k**2 / n**2, 1 + k / n + k**2 / (2 * n**2)]
    assert np.allclose(taylorseer.taylor([0, n, 2 * n], 2 * n + k, 2), by_hand)


def test_spectrum_is_exact_on_polynomials_up_to_its_degree():
    for degree, exact in ((2, True), (4, True), (5, False)):
        f = series(degree)
        error = np.abs(spectrum.ridge(KNOWN, 24, STEPS, 4, 0.0) @ f[KNOWN] - f[24]).max()
        assert (error < 1e-9) == exact
    line = series(1)
    mixed = spectrum.mixed(KNOWN, 24, steps=STEPS, degree=4, penalty=0.1, w=0.0)
    assert np.abs(mixed @ line[KNOWN] - line[24]).max() < 1e-12


def test_spectrums_ridge_is_the_least_squares_with_its_penalty():
    weights, f = spectrum.ridge(KNOWN, 24, STEPS, 4, 0.1), series(6)
    x = np.polynomial.chebyshev.chebvander(2 * np.array(KNOWN) / STEPS - 1, 4)
    padded = np.vstack([x, np.sqrt(0.1) * np.eye(5)])
    c = np.linalg.lstsq(padded, np.vstack([f[KNOWN], np.zeros((5, 7))]), rcond=None)[0]
    assert np.allclose(weights @ f[KNOWN], np.polynomial.chebyshev.chebvander([2 * 24 / STEPS - 1], 4)[0] @ c)


def test_l2p_is_exact_on_what_it_was_fitted_on():
    """Features in a space of as many dimensions as there are known steps are linear combinations of these."""
    rng = np.random.default_rng(0)
    f = rng.standard_normal((12, 4)) @ rng.standard_normal((4, 300))
    known, products = [0, 2, 3, 7], f @ f.T
    weights = l2p.fitted(products, known, 9, 0.0)
    assert np.abs(weights @ f[known] - f[9]).max() < 1e-8
    assert np.allclose(l2p.fitted(products, known, 9, 1e9), [0, 0, 0, 1], atol=1e-6)


def test_l2p_with_every_step_in_its_history_rolls_forward():
    """f_(t+1) = 1.5 f_t - 0.6 f_(t-1): the matrix over all steps finds it and follows it over skipped ones."""
    rng = np.random.default_rng(1)
    f = list(rng.standard_normal((2, 200)))
    for _ in range(8):
        f.append(1.5 * f[-1] - 0.6 * f[-2])
    f = np.array(f)
    rival = l2p._Formula(f @ f.T, 1e-12, "all")
    assert np.abs(rival([0, 1, 2], 7) @ f[:3] - f[7]).max() < 1e-4


def test_gram_is_of_both_branches(case):
    _, _, loop, caption = case
    run = Recorded()
    with torch.no_grad():
        loop.run(caption, 3, record=run)
    found = gram(loop, [run, run], "output")
    a, b = (run.seen[i].output.double() for i in (2, 5))
    assert found[2, 5] == pytest.approx(2 * float((a * b).sum()), rel=1e-9)


def test_dpcaches_costs_are_its_sums():
    f = torch.tensor(series(4, 9), dtype=torch.float64)
    cost = dpcache.costs([f, 2 * f], 1)
    line = [float((f[4] + (n - 4) / 3 * (f[4] - f[1]) - f[n]).abs().mean()) for n in (5, 6, 7, 8)]
    assert cost[1, 4, 7] == pytest.approx(1.5 * sum(line[:3]))
    assert cost[1, 4, 9] == cost[1, 4, 8] == pytest.approx(1.5 * sum(line))
    assert np.isinf(cost[4, 4, 7])
    assert np.isinf(cost[1, 4, 4])


@pytest.mark.parametrize(("budget", "warm"), [(2, 2), (4, 2), (5, 3), (6, 2)])
def test_dpcaches_path_is_the_best_of_all(budget, warm):
    steps, rng = 9, np.random.default_rng(budget)
    cost = rng.random((steps, steps, steps + 1)) ** 3

    def triples(path):
        ends = [*path, steps]
        return sum(cost[ends[n - 1], ends[n], ends[n + 1]] for n in range(warm - 1, len(path)))

    every = [[*range(warm), *rest] for rest in itertools.combinations(range(warm, steps), budget - warm)]
    assert dpcache.path_of(cost, budget, warm) == min(every, key=triples)


def test_meancache_is_exact_where_velocities_turn_evenly():
    """v linear in the time: J from two steps is half the slope per step, and steps of equal length follow the release.

    With span 1 the last velocity is used again, exact on constant ones.
    """
    times = np.linspace(1, 0, 11)
    unit = list(np.eye(11)[:5])
    assert np.allclose(meancache.extended(unit, times, 1), unit[-1])
    # u over two steps is (v_3 + v_4) / 2; J = (v_3 - u) / (2 d) = (v_3 - v_4) / (4 d); v_5 = v_4 - J d.
    assert np.allclose(meancache.extended(unit, times, 2), 1.25 * unit[4] - 0.25 * unit[3])


@pytest.mark.parametrize("displacement", [False, True])
def test_meancaches_deviations_are_of_the_average_velocity(displacement):
    times = np.linspace(1, 0, 10) ** 1.2
    v = torch.tensor(series(3, 9), dtype=torch.float64)
    found = meancache.deviations([v], times, displacement=displacement)
    d = np.diff(times)
    by_hand = abs((v[4] - v[5]) * d[5] + (v[4] - v[6]) * d[6]).mean() / (1 if displacement else times[4] - times[7])
    assert found[4, 7, 0] == pytest.approx(float(by_hand))
    assert (found[3, 4] == 0).all()


@pytest.mark.parametrize("budget", [1, 3, 5])
def test_meancaches_path_is_the_best_of_all(budget):
    steps, rng = 8, np.random.default_rng(budget)
    cost = np.where(np.triu(np.ones((steps, steps + 1)), 1) > 0, rng.random((steps, steps + 1)) ** 3, np.inf)

    def total(path):
        return sum(cost[i, j] for i, j in itertools.pairwise([*path, steps]))

    every = [[0, *rest] for rest in itertools.combinations(range(1, steps), budget - 1)]
    assert meancache.path_of(cost, budget) == min(every, key=total)


def test_seacaches_filter_keeps_signals_when_clean_and_smooths_when_noisy():
    x = torch.randn(1, 2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(seacache.filtered(x, 1e-9, 3.0), x, atol=1e-4)
    smooth = seacache.filtered(x, 0.999, 3.0)
    spectrum_of = torch.fft.fftn(smooth, dim=(2, 3, 4)).abs()
    assert spectrum_of[..., 3:5, 3:5, 3:5].max() < 1e-3 * spectrum_of[..., 0, 0, 0].min()


def test_budcaches_search_finds_the_best_and_keeps_the_prefix():
    best = (0, 1, 2, 7, 9, 13, 20, 21, 30, 35)

    def loss(path):
        return float(sum(abs(a - b) for a, b in zip(path, best, strict=True)))

    start = [*range(9), 39]
    path, found = budcache.search(loss, start, 40, anneal=300, rounds=60)
    assert found < 0.2 * loss(tuple(start))
    assert path[:3] == [0, 1, 2]
    assert len(set(path)) == 10
    for swapped in budcache.swaps(path, 40):
        assert len(swapped) == 10
        assert swapped[:3] == (0, 1, 2)


def test_budcaches_grid_falls_from_end_to_end():
    times = torch.linspace(1, 0, 21).double() ** 1.5
    grid = budcache.Grid(times)
    assert torch.allclose(grid(), times, atol=1e-6)
    with torch.no_grad():
        grid.logits.copy_(5 * torch.randn(20, generator=torch.Generator().manual_seed(0)))
    moved = grid().detach()
    assert moved[0] == 1
    assert moved[-1] == 0
    assert (moved.diff() < 0).all()


def test_budcaches_grid_learns(case):
    _, _, loop, caption = case
    with torch.no_grad():
        full, _ = loop.run(caption, 3)
    grid, losses = budcache.refine(loop, [0, 1, 3, 5], [caption], 3, [full], updates=6, rate=0.05, batch=1)
    assert losses[-1] < losses[0]
    assert (grid.diff() < 0).all()
