"""Paths made better by trying them: the search, what it keeps, and who takes it."""

from __future__ import annotations

import itertools
import random
import shutil

import pytest
import tiny
from calibrated import STEPS, artifact, pipe_of, sampling
from hypothesis import given
from hypothesis import strategies as st

import vaccel
from vaccel.calibrate import refine as run
from vaccel.calibrate.refining import _Search, neighbour
from vaccel.integrations.diffusers.schedulers import flow_of
from vaccel.planning import artifacts
from vaccel.planning.calibration import calibration

PROMPTS = ["a red cat runs", "a blue dog sleeps"]


@pytest.fixture
def path(tmp_path):
    return shutil.copy(artifact("unipc"), tmp_path / "f.json")


@given(st.sets(st.integers(1, 29), min_size=1, max_size=28), st.integers(0, 10**6))
def test_a_neighbour_has_one_step_moved(others, seed):
    before = (0, *sorted(others))
    after = neighbour(before, 30, random.Random(seed))
    assert after == tuple(sorted(set(after)))
    assert len(after) == len(before)
    assert after[0] == 0
    assert after[-1] < 30
    assert len(set(before) - set(after)) == 1


class Landscape(_Search):
    """PSNR as a function of the path and the run, in place of runs."""

    target, noise = (0, 1, 2, 5), 0.0

    def _psnr(self, budget, path, job):
        off = sum(abs(a - b) for a, b in zip(path, self.target, strict=True))
        return 40.0 - off + self.noise * random.Random(f"{path} {job}").uniform(-1, 1)


def searched(path, tries, **fields):
    search = type("Search", (Landscape,), fields)(None, path, [(p, s) for p in PROMPTS for s in range(3)],
                                                  sampling("unipc"))  # fmt: skip
    for _ in range(tries):
        search.attempt(4)
    search.save()
    return artifacts.read(path, "forecast")["paths"]["4"]


def test_it_climbs_to_what_is_best_for_both_halves(path):
    begun = calibration(path).plan(4).full_steps
    found = searched(path, 80)
    assert tuple(found["steps"]) == Landscape.target != begun
    assert found["tried"] == 80
    assert found["gain"] == pytest.approx(sum(abs(a - b) for a, b in zip(begun, Landscape.target, strict=True)))


def test_a_path_that_is_good_for_one_half_alone_is_not_kept(path):
    halves = lambda self, budget, path, job: 40.0 + (sum(path) if job[1] % 2 == 0 else -sum(path))  # noqa: E731
    plan = calibration(path).plan(4).full_steps
    assert tuple(searched(path, 30, _psnr=halves)["steps"]) == plan


def test_runs_take_it_and_another_solver_does_not(path):
    plan = calibration(path).plan(4)
    found = tuple(searched(path, 80)["steps"])
    method = vaccel.Forecast.load(path, 4)
    assert method.full_steps == found
    assert method.predicted == pytest.approx(plan.predicted), "the plan's, which runs along it fall below"
    assert vaccel.Forecast.load(path, 4, objective="sum").full_steps != found
    assert vaccel.Forecast.load(path, 5).full_steps == calibration(path).plans()[5].full_steps
    wide = vaccel.Forecast.load(path, 5, max_gap=2)
    assert max(b - a for a, b in itertools.pairwise(wide.full_steps)) == 2, "a gap that was asked for holds"
    elsewhere = pipe_of("unipc")
    elsewhere.scheduler = tiny.unipc(shift=6.0)
    with vaccel.accelerate(elsewhere, method) as handle:
        elsewhere(PROMPTS[0], **sampling("unipc"), output_type="latent")
        planned = calibration(path).at(flow_of(elsewhere.scheduler).levels).plan(4).full_steps
        assert tuple(i for i, letter in enumerate(handle.trace.timeline()) if letter == "F") == planned
    pipe = pipe_of("unipc")
    with vaccel.accelerate(pipe, method) as handle:
        pipe(PROMPTS[0], **sampling("unipc"), output_type="latent")
        assert tuple(i for i, letter in enumerate(handle.trace.timeline()) if letter == "F") == found


def test_real_runs_and_a_second_call_that_goes_on(path):
    told = []
    options = {"call": sampling("unipc"), "budgets": [4], "progress": lambda *now: told.append(now)}
    first = run(pipe_of("unipc"), path, PROMPTS, 0.02, **options)["paths"]["4"]
    assert first["tried"] >= 1
    assert told[0][2] == "4 steps: 0 paths tried, +0.0 dB"
    second = run(pipe_of("unipc"), path, PROMPTS, 0.02, **options)["paths"]["4"]
    assert second["tried"] > first["tried"]
    assert second["gain"] >= first["gain"] >= 0


def test_it_is_joined_to_what_others_have_written_meanwhile(path):
    """Of two searches the better path stays, and a sample that came in between does, too."""
    data = artifacts.read(path, "forecast")
    mine = {
        "4": {"steps": [0, 1, 2, 5], "tried": 9, "gain": 1.0},
        "5": {"steps": [0, 1, 2, 3, 5], "tried": 1, "gain": 0.0},
    }
    theirs = {"4": {"steps": [0, 1, 3, 5], "tried": 3, "gain": 2.0}}
    for paths in (mine, theirs, mine):
        artifacts.write(path, {**artifacts.read(path, "forecast"), "paths": paths})
        assert artifacts.read(path, "forecast")["samples"] == data["samples"]
    assert artifacts.read(path, "forecast")["paths"] == {**mine, **theirs}


def test_an_interruption_loses_nothing(path):
    def stop(done, total, what):
        if "1 paths" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipe_of("unipc"), path, PROMPTS, 1, call=sampling("unipc"), budgets=[4], progress=stop)
    assert artifacts.read(path, "forecast")["paths"]["4"]["tried"] == 1


def test_what_is_refused(path):
    pipe, call = pipe_of("unipc"), sampling("unipc")
    with pytest.raises(ValueError, match="two prompts or seeds"):
        run(pipe, path, PROMPTS[:1], 1, call=call)
    with pytest.raises(ValueError, match="minutes"):
        run(pipe, path, PROMPTS, float("nan"), call=call)
    with pytest.raises(ValueError, match=f"a calibration of {STEPS} steps, the call has 5"):
        run(pipe, path, PROMPTS, 1, call={**call, "num_inference_steps": 5})
    with pytest.raises(ValueError, match="budgets must be 3 to 8, got "):
        run(pipe, path, PROMPTS, 1, call=call, budgets=[2, 4])
    data = artifacts.read(path, "forecast")
    for steps in ([0, 1, 2], [0, 2, 1, 5], [1, 2, 3, 4], [0, 1, 2, STEPS]):
        artifacts.replace(path, {**data, "paths": {"4": {"steps": steps, "tried": 1, "gain": 0.0}}})
        with pytest.raises(ValueError, match=r"paths\.4: must be 4 steps of 9|paths"):
            calibration(path)
