"""Forecast calibrations read at other noise levels, and the prior: against splines of SciPy's and plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tiny
import torch
from calibrated import STEPS, artifact, pipe_of
from forecast_loops import distance, fitted, forecast, task_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_forecast import best_paths
from scipy.interpolate import CubicHermiteSpline
from test_forecast import accelerated, full
from test_oracle import TOLERANCE
from typer.testing import CliRunner

import vaccel
from vaccel import cli
from vaccel.planning import artifacts, levels, merging, prior
from vaccel.planning.calibration import calibration, packed
from vaccel.planning.flow import Flow
from vaccel.planning.gram import Gram


def read_by_spline(known: list[float], values: np.ndarray, wanted: list[float]) -> np.ndarray:
    """Values [T, n] at falling levels read at others, by SciPy, with the slopes written out."""
    at, of = np.array(known)[::-1], values[::-1]
    slopes = np.empty_like(of)
    for k in range(len(at)):
        if k in (0, len(at) - 1):
            a, b = (0, 1) if k == 0 else (-2, -1)
            slopes[k] = (of[b] - of[a]) / (at[b] - at[a])
        else:  # the derivative, there, of the parabola through three points
            through = [np.polyfit(at[k - 1 : k + 2] - at[k], of[k - 1 : k + 2, n], 2)[1] for n in range(of.shape[1])]
            slopes[k] = through
    return CubicHermiteSpline(at, of, slopes)(np.clip(wanted, at[0], at[-1]))


falling = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=9, unique_by=lambda s: round(s, 2)).map(
    lambda found: sorted(found, reverse=True)
)


@settings(max_examples=60, deadline=None)
@given(falling, falling, st.integers(0, 9))
def test_interpolation_is_the_spline(known, wanted, seed):
    values = np.random.default_rng(seed).normal(size=(len(known), 3))
    w = levels.interpolation(known, wanted)
    assert np.allclose(w @ values, read_by_spline(known, values, wanted), atol=1e-6, rtol=1e-6)
    assert np.allclose(w.sum(axis=1), 1)
    assert np.allclose(levels.interpolation(known, known), np.eye(len(known)))
    line = np.array(known) * 3 - 1
    inside = [s for s in wanted if known[-1] <= s <= known[0]]
    assert np.allclose(levels.interpolation(known, inside) @ line, np.array(inside) * 3 - 1)


def test_products_are_those_of_the_interpolated_velocities():
    known, wanted = [1.0, 0.8, 0.5, 0.1], [0.9, 0.7, 0.65, 0.3, 0.05]
    velocities = np.random.default_rng(0).normal(size=(2, 4, 30))  # [channels, T, elements]
    gram = Gram((*known, 0.0), np.einsum("cte,cse->cts", velocities, velocities)[None], 60)
    read = levels.read_products(gram, [*wanted, 0.0])
    moved = np.stack([read_by_spline(known, v, wanted) for v in velocities])
    assert np.allclose(read.products[0], np.einsum("cte,cse->cts", moved, moved))
    assert read.levels == (*wanted, 0.0)
    growth = levels.read_growth(known, [8.0, 4.0, 2.0, 1.0], [0.9, 0.65, 0.05])
    assert np.allclose(growth, [math.sqrt(32), math.sqrt(8), 1.0])


def test_a_run_that_begins_higher_begins_where_the_calibration_does():
    """At the end of what was recorded nothing would change, and its first steps would cost nothing."""
    gram = Gram((0.9, 0.6, 0.3, 0.0), np.eye(3)[None, None], 1)
    read, own = levels.read_products(gram, [1.0, 2 / 3, 1 / 3, 0.0]), gram.products
    assert np.allclose(read.products, own)
    lower = levels.read_products(gram, [0.6, 0.3, 0.1, 0.0]).products[0, 0]
    assert np.allclose(lower, own[0, 0][np.ix_([1, 2, 2], [1, 2, 2])]), "below, its last velocity stays"


def test_levels_that_cannot_be_read_are_refused():
    gram = Gram((1.0, 0.5, 0.0), np.eye(2)[None, None], 1)
    with pytest.raises(ValueError, match=r"the run's noise levels must fall: 0\.7 at step 1 comes after 0\.6"):
        levels.read_products(gram, [0.6, 0.7, 0.0])
    with pytest.raises(ValueError, match="must be finite numbers: that of step 1 is nan"):
        levels.read_products(gram, [0.6, math.nan, 0.0])
    with pytest.raises(ValueError, match="the calibration's noise levels must fall"):
        levels.read_products(Gram((0.5, 1.0, 0.0), np.eye(2)[None, None], 1), [0.6, 0.3, 0.0])
    twice = Gram((1.0, 0.5, 0.5, 0.0), np.ones((1, 1, 3, 3)), 1)  # as Heun's solver has it
    assert np.allclose(levels.read_products(twice, [0.8, 0.8, 0.2, 0.0]).products, 1)


@pytest.mark.parametrize(("steps", "shift", "budget"), [(8, 3.0, 5), (6, 3.0, 4), (STEPS, 6.0, 5)])
def test_a_run_elsewhere_is_the_plain_loop(steps, shift, budget):
    """Path and weights are those of the trajectory read at the run's levels, whatever T, shift and path."""
    made, known = full("unipc"), calibration(artifact("unipc"))
    pipe = pipe_of("unipc")
    pipe.scheduler = tiny.unipc(shift)
    task = task_of("unipc", steps=steps)
    task.scheduler = tiny.unipc(shift)
    wanted = forecast(task, range(steps), None).levels
    shape = made.trajectory.shape
    flat = np.moveaxis(made.trajectory, 1, 0).reshape(shape[1], -1)
    moved = np.stack(
        [read_by_spline(made.levels[:-1], flat[:, n : n + 1], wanted[:-1])[:, 0] for n in range(flat.shape[1])], 1
    )
    moved = np.moveaxis(moved.reshape(steps, shape[0], *shape[2:]), 0, 1)
    growth = np.exp(np.interp(wanted[:-1], made.levels[-2::-1], np.log(known.error_growth)[::-1]))
    path, _ = best_paths(moved, wanted, growth.tolist(), 2, steps, "channel", "squares")[budget]
    expected = forecast(task, path, fitted(moved))
    method = vaccel.Forecast.load(artifact("unipc"), budget, correct=False)
    actual, trace = accelerated("unipc", method, steps=steps, pipe=pipe)
    assert trace.timeline() == expected.letters
    assert distance(actual, expected.latents) < TOLERANCE
    (note,) = [n for n in trace.notes if "read at this run's" in n]
    assert note == f"calibrated at {STEPS} steps of other noise levels, read at this run's {steps}"


def test_it_is_worked_out_once_for_each_kind_of_run(monkeypatch):
    known = calibration(artifact("unipc"))
    assert known.at(known.gram.levels) is known
    elsewhere = (*np.linspace(1, 0.1, 12).tolist(), 0.0)
    assert known.at(elsewhere) is known.at(list(elsewhere)) is not known
    assert known.at(elsewhere).at(known.gram.levels) is known
    assert known.at(elsewhere).plans() is known.at(elsewhere).plans()
    assert known.at(elsewhere).gram.num_steps == 12
    assert known.gram.num_steps == STEPS


def test_many_steps_are_planned_by_all_channels_together():
    """In a fraction of the time; the plan's errors are still those of each channel's own weights."""
    known = calibration(artifact("unipc")).at((*np.linspace(1, 0.05, 80).tolist(), 0.0))
    plan, together = known.plan(20, corrected=False), known.plan(20, per="tensor", corrected=False)
    assert plan.full_steps == together.full_steps
    assert len(plan.full_steps) == 20
    assert plan.predicted < together.predicted
    first = next(k for k, f in enumerate(plan.full_steps) if f > k)
    path = plan.full_steps
    error = known.error(path[max(0, first - 2) : first][::-1], path[first], "channel")
    assert plan.errors[first - 1] == pytest.approx(error)


# -- the prior ---------------------------------------------------------------------------------------------------------


def artifact_of(folder, velocities: np.ndarray, at: list[float], growth: float) -> str:
    """An artifact of these velocities [T, elements] of one channel."""
    data = prior.combined([calibration(artifact("unipc"))], 4)
    sample = {
        **data["samples"]["mean"], "levels": [*at, 0.0], "elements": velocities.shape[1],
        "products": packed((velocities @ velocities.T)[None, None]),
        "error_growth": {str(step): growth for step in range(len(at))},
    }  # fmt: skip
    path = folder / f"{growth}.json"
    artifacts.replace(path, {**data, "num_steps": len(at), "samples": {"mean": sample}})
    return str(path)


def test_a_prior_is_the_mean_of_what_was_recorded_of_either_model(tmp_path):
    random = np.random.default_rng(1)
    one, other = random.normal(size=(4, 50)), 7 * random.normal(size=(3, 80))
    paths = [
        artifact_of(tmp_path, one, [1.0, 0.7, 0.4, 0.1], 9.0),
        artifact_of(tmp_path, other, [0.7, 0.4, 0.1], 4.0),
    ]
    data = prior.combined([calibration(path) for path in paths], 7)
    artifacts.replace(tmp_path / "prior.json", data)
    known = calibration(tmp_path / "prior.json")
    at = known.gram.levels[:-1]
    assert at[0] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(at))
    assert np.linalg.eigvalsh(known.gram.products[0, 0]).min() > -1e-9
    inside = [k for k, s in enumerate(at) if s <= 0.7]
    growth = [known.error_growth[k] for k in range(7)]
    assert np.allclose([growth[k] for k in inside], 6.0)
    assert growth[0] == pytest.approx(9.0), "which only one of them has recorded"
    with pytest.raises(ValueError, match="a prior is made of calibrations"):
        prior.combined([])


def test_what_ships_is_made_of_what_ships():
    from vaccel.demo import family, image_family

    folders = family.shipped_folder(), image_family.shipped_folder()
    made = prior.combined([calibration(folder / "forecast.json") for folder in folders])
    known = artifacts.read(prior.shipped(), "forecast")
    assert np.allclose(made["samples"]["mean"]["levels"], known["samples"]["mean"]["levels"])
    assert made["num_steps"] == known["num_steps"]


@pytest.mark.parametrize("solver", ["unipc", "wan-epsilon", "euler"])
def test_the_prior_serves_runs_of_any_kind(solver):
    plain, _ = accelerated(solver, vaccel.Forecast(tuple(range(STEPS)), STEPS))
    for budget in (4, 6):
        made, trace = accelerated(solver, vaccel.Forecast.prior(budget))
        assert trace.timeline().count("F") == budget
        assert torch.isfinite(made).all()
        assert not torch.equal(made, plain)
        assert [n for n in trace.notes if n.startswith("not calibrated: the prior, read at")]
    everything, trace = accelerated(solver, vaccel.Forecast.prior(40))
    assert trace.timeline() == "F" * STEPS
    assert distance(everything, plain) < TOLERANCE
    for budget in (1, 0, True, 2.5, None):
        with pytest.raises(ValueError, match="budget must be a whole number of at least 2"):
            vaccel.Forecast.prior(budget)


def test_a_loop_of_ones_own_says_its_levels():
    torch.manual_seed(0)
    denoiser = vaccel.Denoiser(lambda x, t, cond: 0.5 * x, method=vaccel.Forecast.prior(4))
    with pytest.raises(ValueError, match="this forecast is for 64 steps, the run has 9"):
        denoiser.run(9)
    x = torch.randn(1, 4, 3, 3)
    with denoiser.run(9, flow=Flow.even(9)) as run:
        for i in range(9):
            x = x - run.step(i, 1 - i / 9, x, 0.0) / 9
    assert run.trace.timeline().count("F") == 4


def test_shaped_follows_the_levels():
    even, uneven = Flow.even(20), Flow((*np.geomspace(1, 0.001, 20).tolist(), 0.0))
    method, paths = vaccel.Forecast.shaped(20, 7), []
    for flow in (even, uneven):
        denoiser = vaccel.Denoiser(lambda x, t, cond: 0.5 * x, method=method)
        with denoiser.run(20, flow=flow) as run:
            for i in range(20):
                run.step(i, flow.levels[i], torch.ones(1, 4, 3, 3), 0.0)
        paths.append(run.trace.timeline())
        assert paths[-1].count("F") == 7
    assert paths[0] != paths[1]


# -- several solvers ---------------------------------------------------------------------------------------------------


def test_merged_calibrations_are_the_mean_at_each_pair_of_levels(tmp_path):
    """Of runs at the same levels simply the mean, by channel; what only one has recorded is that one's."""
    known = calibration(artifact("unipc"))
    same = merging.merged([known, known])
    artifacts.replace(tmp_path / "same.json", same)
    read = calibration(tmp_path / "same.json").at((*known.gram.levels[:-1], 0.0))
    assert np.allclose(read.gram.products, known.gram.products, rtol=2e-2, atol=1e-2 * known.gram.products.max())
    other = calibration(artifact("euler"))
    data = merging.merged([known, other])
    artifacts.replace(tmp_path / "both.json", data)
    both = calibration(tmp_path / "both.json")
    assert both.gram.products.shape[1] == known.gram.products.shape[1]
    assert both.fitted == known.fitted
    low, high = (pick(known.gram.levels[k], other.gram.levels[k]) for pick, k in ((max, -2), (min, 0)))
    inside = [k for k, s in enumerate(both.gram.levels[:-1]) if low <= s <= high]
    assert len(inside) > STEPS
    wanted = (*[both.gram.levels[k] for k in inside], 0.0)
    mean = sum(levels.read_products(each.gram, wanted).products for each in (known, other)) / 2
    part = np.ix_([0], range(mean.shape[1]), inside, inside)
    # Euler's last level is its alone: its row makes the matrix none of any vectors, and the nearest one is taken.
    assert np.allclose(both.gram.products[part], mean, atol=1e-2 * mean.max())
    for method in (vaccel.Forecast.load(tmp_path / "both.json", 5),):
        for solver in ("unipc", "euler"):
            _, trace = accelerated(solver, method)
            assert trace.timeline().count("F") == 5


def test_what_cannot_be_merged_says_why():
    known = calibration(artifact("unipc"))
    with pytest.raises(ValueError, match="two or more at a time, got 1"):
        merging.merged([known])
    with pytest.raises(ValueError, match="of another model cannot be merged"):
        merging.merged([known, calibration(artifact("cog-ddim"))])
    with pytest.raises(ValueError, match="of another bands cannot be merged"):
        merging.merged([known, calibration(artifact("unipc", bands=2))])


def test_merging_by_command(tmp_path):
    paths = [str(artifact(solver)) for solver in ("unipc", "euler")]
    out = tmp_path / "merged.json"
    done = CliRunner().invoke(cli.app, ["calibrate", "merge", *paths, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert calibration(out).gram.num_steps == 2 * STEPS
    bad = CliRunner().invoke(cli.app, ["calibrate", "merge", paths[0], "--out", str(out)])
    assert bad.exit_code == 2
    assert "two or more at a time" in bad.output


def test_another_solver_has_the_pipelines_settings():
    from vaccel.calibrate.first_order import named

    made = named("FlowMatchEulerDiscreteScheduler", tiny.unipc(5.0))
    assert made.config.shift == 5.0
    assert named("UniPCMultistepScheduler", made).config.flow_shift == 5.0
    with pytest.raises(ValueError, match="no scheduler class of diffusers"):
        named("WanPipeline", made)


def test_elsewhere_errors_count_as_larger(tmp_path):
    """A promise is lower by 3 dB where the calibration is read at other levels than its own."""
    data = artifacts.read(artifact("unipc"), "forecast")
    (sample,) = data["samples"].values()
    sample["curves"] = [[[0.1, 20.0], [0.01, 40.0]]]
    artifacts.replace(tmp_path / "f.json", data)
    known = calibration(tmp_path / "f.json")
    read = known.at((*np.linspace(1, 0.1, 12).tolist(), 0.0))
    for first, second in ((known, read), (read, known)):  # whichever is asked first
        assert first.fidelity is not second.fidelity
    assert known.psnr(0.03)[0] - read.psnr(0.03)[0] == pytest.approx(20 * math.log10(2**0.5))
