"""Forecast against plain loops, what it refuses, and the other ways to ask for forecasts."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import oracle_caching
import pytest
import tiny
import torch
from calibrated import STEPS, artifact, drawn, pipe_of
from forecast_loops import between, distance, fitted, forecast, last_output, line, task_of
from oracle_forecast import best_paths, path_errors
from test_oracle import ONE, SEED, TOLERANCE

import vaccel
from vaccel import actions
from vaccel.actions import Weights
from vaccel.cache import LastOutput, VelocityHistory
from vaccel.planning import artifacts
from vaccel.planning.calibration import calibration

TWO = ["a red cat runs", "a blue dog sleeps"]
PATH = (0, 2, 4, 5, 8)  # forecasts from one velocity, and from two at various distances
LETTERS = "FpFpFFppF"

runs = pytest.mark.parametrize(
    ("solver", "guidance"),
    [("unipc", 5.0), ("unipc", 1.0), ("euler", 5.0), ("dpm", 5.0), ("wan-epsilon", 5.0), ("cog-ddim", 5.0),
     ("cog-ddim", 1.0), ("cog-dpm", 5.0), ("qwen", 5.0), ("qwen", 1.0)],
)  # fmt: skip


def accelerated(solver, method, *, prompt=ONE, guidance=5.0, steps=STEPS, pipe=None):
    """(latents, trace) of a run, on a new pipeline if none is given."""
    pipe = pipe or pipe_of(solver)
    with vaccel.accelerate(pipe, method) as handle:
        return tiny.latents(pipe, prompt, steps=steps, seed=SEED, guidance=guidance), handle.trace


@functools.cache
def full(solver, guidance=5.0):
    """The loop in full, whose trajectory is what ``calibrated.artifact`` has measured."""
    return forecast(task_of(solver, guidance=guidance), range(STEPS), None)


def loaded(solver, guidance=5.0, bands=1, path=PATH, correct=False, **fields):
    """A calibration's weights, on a path of our own; corrections have tests of their own."""
    method = vaccel.Forecast.load(artifact(solver, guidance, bands=bands), budget=5, correct=correct, **fields)
    return dataclasses.replace(method, full_steps=path)


# --- runs -----------------------------------------------------------------------------------------------------------


@runs
def test_without_calibration(solver, guidance):
    task = task_of(solver, guidance=guidance)
    expected = forecast(task, PATH, line(task))
    actual, trace = accelerated(solver, vaccel.Forecast(PATH, STEPS), guidance=guidance)
    assert distance(actual, expected.latents) < TOLERANCE
    assert trace.timeline() == expected.letters == LETTERS
    assert trace.calls == {"large": len(PATH) * (2 if guidance > 1 else 1), "small": 0}
    assert [s.large for s in trace.steps if s.action.letter == "p"] == [0] * 4
    assert distance(actual, full(solver, guidance).latents) > 100 * TOLERANCE, "something was skipped"


@runs
def test_calibrated(solver, guidance):
    trajectories = full(solver, guidance).trajectory
    expected = forecast(task_of(solver, guidance=guidance), PATH, fitted(trajectories))
    actual, trace = accelerated(solver, loaded(solver, guidance), guidance=guidance)
    assert distance(actual, expected.latents) < TOLERANCE
    assert trace.timeline() == LETTERS
    weights = [s.action.weights.values.shape for s in trace.steps if s.action.letter == "p"]
    assert weights == [(1 if i == 1 else 2, 1, trajectories.shape[2]) for i in (1, 3, 6, 7)]


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_other_orders_and_groups(order, per):
    trajectories = full("unipc").trajectory
    expected = forecast(task_of("unipc"), PATH, fitted(trajectories, per), order)
    actual, _ = accelerated("unipc", loaded("unipc", per=per, order=order))
    assert distance(actual, expected.latents) < TOLERANCE
    usual = forecast(task_of("unipc"), PATH, fitted(trajectories))
    assert distance(actual, usual.latents) > 10 * TOLERANCE, "the cases differ"


@pytest.mark.parametrize("solver", ["unipc", "cog-ddim"])
@pytest.mark.parametrize("per", ["channel, band", "band"])
def test_calibrated_by_bands(solver, per):
    trajectories = full(solver).trajectory
    expected = forecast(task_of(solver), PATH, fitted(trajectories, per))
    actual, trace = accelerated(solver, loaded(solver, bands=2, per=per))
    assert distance(actual, expected.latents) < TOLERANCE
    assert trace.timeline() == LETTERS
    whole = forecast(task_of(solver), PATH, fitted(trajectories, "channel" if "channel" in per else "tensor"))
    assert distance(actual, whole.latents) > 10 * TOLERANCE, "the bands have weights of their own"


@pytest.mark.parametrize(("solver", "damping"), [("unipc", 0.0), ("cog-ddim", 1.0), ("qwen", 0.25)])
def test_damping_and_a_batch(solver, damping):
    prompt = ["a red cat runs", "blue dog"] if solver == "qwen" else TWO
    task = task_of(solver, prompt)
    expected = forecast(task, PATH, line(task, damping))
    actual, trace = accelerated(solver, vaccel.Forecast(PATH, STEPS, damping=damping), prompt=prompt)
    assert distance(actual, expected.latents) < TOLERANCE
    assert trace.timeline() == LETTERS


def test_runs_are_fresh_and_remove_gives_the_pipeline_back():
    for solver, method in [("unipc", loaded("unipc", bands=2, per="channel, band")), ("cog-ddim", loaded("cog-ddim")),
                           ("qwen", vaccel.Forecast(PATH, STEPS))]:  # fmt: skip
        pipe = pipe_of(solver)
        plain, before = tiny.latents(pipe, steps=STEPS), set(pipe.transformer.__dict__)
        with vaccel.accelerate(pipe, method):
            first = tiny.latents(pipe, steps=STEPS)
            assert not torch.equal(first, plain)
            tiny.latents(pipe, "a blue dog sleeps", steps=STEPS, seed=3)
            assert torch.equal(tiny.latents(pipe, steps=STEPS), first)
        assert torch.equal(tiny.latents(pipe, steps=STEPS), plain)
        assert set(pipe.transformer.__dict__) == before


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def forwards():
    """A Wan pipeline, and a list that grows with every forward of it."""
    pipe, made = pipe_of("unipc"), []
    pipe.transformer.blocks[0].register_forward_pre_hook(lambda *_: made.append(1))
    return pipe, made


def test_other_steps_and_models_are_refused(forwards):
    pipe, made = forwards
    with pytest.raises(ValueError, match="this forecast is for 9 steps, the run has 12"):
        accelerated("unipc", vaccel.Forecast(PATH, STEPS), steps=12, pipe=pipe)
    with pytest.raises(ValueError, match=r"other noise levels than .*: use Forecast\.load\(artifact, budget\)"):
        accelerated("unipc", dataclasses.replace(loaded("unipc"), budget=None), steps=12, pipe=pipe)
    other = tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=3))
    with pytest.raises(ValueError, match="calibrated with another pipeline: model's configuration"):
        vaccel.accelerate(other, loaded("unipc"))
    with pytest.raises(ValueError, match="model WanTransformer3DModel, here CogVideoX"):
        vaccel.accelerate(pipe_of("cog-ddim"), loaded("unipc"))
    allowed = loaded("unipc", allow_mismatch=True)
    _, trace = accelerated("unipc", allowed, pipe=other)
    assert "calibrated with another pipeline: model's configuration" in trace.notes[0]
    assert made == []


def test_another_solver_on_the_same_levels_will_do():
    """Its order changes the path, and so what is right; weights and levels are those of the calibration."""
    first_order = dataclasses.replace(task_of("unipc"), scheduler=_first_order())
    expected = forecast(first_order, PATH, fitted(full("unipc").trajectory))
    actual, trace = accelerated("unipc", loaded("unipc"), pipe=tiny.wan_pipeline(_first_order()))
    assert trace.timeline() == LETTERS
    (note,) = [n for n in trace.notes if "another solver" in n]
    assert note.endswith("another solver on these noise levels: scheduler's solver_order 2, here 1")
    assert distance(actual, expected.latents) < TOLERANCE
    same, trace = accelerated("unipc", loaded("unipc"))
    assert distance(actual, same) > 10 * TOLERANCE
    assert not any("solver" in n for n in trace.notes)


def _first_order():
    return type(tiny.unipc()).from_config(tiny.unipc().config, solver_order=1)


def test_an_artifact_that_changes_is_refused(forwards, tmp_path):
    pipe, made = forwards
    path = tmp_path / "forecast.json"
    path.write_bytes(artifact("unipc").read_bytes())
    method = vaccel.Forecast.load(path, budget=5)
    accelerated("unipc", method)
    data = artifacts.read(path, "forecast")
    artifacts.replace(path, {**data, "prompts": "others"})
    with pytest.raises(ValueError, match="is not what it was when this method was loaded from it"):
        accelerated("unipc", method, pipe=pipe)
    accelerated("unipc", vaccel.Forecast.load(path, budget=5))
    path.write_text(path.read_text().replace('"elements": ', '"elements": 1'))
    for use in (
        lambda: accelerated("unipc", method, pipe=pipe),
        lambda: vaccel.Forecast.load(path, budget=5),
        lambda: calibration(path),
    ):
        with pytest.raises(ValueError, match="was changed after the calibration wrote it"):
            use()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        accelerated("unipc", method, pipe=pipe)
    assert made == []


def test_settings():
    assert vaccel.Forecast((5, 0, 5), 6).full_steps == (0, 5)
    for settings, message in [
        ({"full_steps": (1, 2)}, "step 0 must be in full_steps"), ({"full_steps": (0, 9)}, r"\[9\] are outside"),
        ({"order": 0}, "order must be 1 to 5"), ({"order": 6}, "order must be 1 to 5"), ({"guard": 0.0}, "above 0"),
        ({"damping": float("nan")}, "finite"), ({"guard": 2.0}, "a guard needs a calibration"), ({"per": "x"}, "per"),
        ({"per": "band", "order": 3}, "at most two velocities"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            vaccel.Forecast(**{"full_steps": PATH, "num_steps": STEPS, **settings})
    preset = vaccel.Forecast.preset("wan2.1-t2v-14b", budget=17, damping=0.3)
    assert (len(preset.full_steps), preset.num_steps, preset.damping) == (17, 50, 0.3)
    with pytest.raises(ValueError, match="needs a budget"):
        vaccel.Forecast.preset("wan2.1-t2v-14b")
    for steps, budget in [(50, 17), (30, 2), (12, 12), (100, 37), (40, 5)]:
        shaped = vaccel.Forecast.shaped(steps, budget)
        assert len(shaped.full_steps) == budget
        assert (shaped.full_steps[0], shaped.full_steps[-1]) == (0, steps - 1)
        gaps = [b - a for a, b in zip(shaped.full_steps, shaped.full_steps[1:], strict=False)]
        assert gaps[0] <= max(gaps), "the early steps are close"
    assert vaccel.Forecast.shaped(50, 17).full_steps == preset.full_steps
    with pytest.raises(ValueError, match="budget must be 2 to 12, got 13"):
        vaccel.Forecast.shaped(12, 13)
    with pytest.raises(ValueError, match="can make 2 to 9, got 1"):
        vaccel.Forecast.load(artifact("unipc"), budget=1)
    assert vaccel.Forecast.load(artifact("unipc"), budget=10).full_steps == tuple(range(STEPS)), "of its own runs"
    with pytest.raises(ValueError, match="needs a budget"):
        vaccel.Forecast.load(artifact("unipc"))
    with pytest.raises(ValueError, match="frequency bands"):
        vaccel.Forecast.load(artifact("unipc"), budget=5, per="band")


# --- what a calibration says ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", [True, False])
@pytest.mark.parametrize("objective", ["leximax", "sum", "squares"])
def test_load_takes_the_best_path(growth, objective, tmp_path):
    """And whatever it was chosen by, its errors are those at the end: they are what a guard compares with."""
    made, path = full("unipc"), tmp_path / "forecast.json"
    data = artifacts.read(artifact("unipc"), "forecast")
    (sample,) = data["samples"].values()
    sample["error_growth"] = {"2": 6.0, "4": 1.5, "7": 0.2}
    artifacts.replace(path, data)
    error_growth = drawn(between(sample["error_growth"], STEPS), 1, made.levels[:-1])
    weighed, elements = error_growth if growth else [1.0] * STEPS, made.trajectory[0, 0].size ** 0.5
    best = best_paths(made.trajectory, made.levels, weighed, 2, 10, "channel", objective, corrected=True)
    for budget in (3, 4, 6):
        method = vaccel.Forecast.load(path, budget=budget, objective=objective, error_growth=growth)
        assert method.full_steps == best[budget][0]
        along = made.trajectory, made.levels, error_growth, 2, "channel", method.full_steps
        assert method.max_error * elements == pytest.approx(max(path_errors(*along, {})), rel=1e-5)
        errors = path_errors(*along, {}, corrected=True)
        assert method.predicted * elements == pytest.approx(math.hypot(*errors), rel=1e-5)
    with pytest.warns(DeprecationWarning, match="error_growth"):
        assert vaccel.Forecast.load(path, budget=budget, objective=objective, gain=growth) == method
    _, trace = accelerated("unipc", method)
    assert trace.notes == [f"predicted error of the latents: {method.predicted:.3g} (root mean square)"]


def test_plain_data():
    for method in (
        vaccel.Forecast(PATH, STEPS, order=3, damping=0.25),
        loaded("unipc", bands=2, per="channel, band", guard=1.5),
    ):
        again = vaccel.method_from_json(json.loads(json.dumps(method.to_json())))
        assert again == method
        assert hash(again) == hash(method)
    for action in (
        actions.Forecast(),
        actions.Forecast(Weights.plain(1.5, -0.5)),
        actions.Forecast([[[0.1, 0.2]], [[0.3, 1 / 3]]]),
        actions.Forecast([[[0.1], [0.7]]]),
    ):
        again = actions.from_json(json.loads(json.dumps(action.to_json())))
        assert again == action
        assert hash(again) == hash(action)
    assert Weights.plain(1.0) != Weights.plain(1.0, 0.0)
    assert Weights.plain(1.0, 2.0) != Weights.plain(2.0, 1.0)
    for values in ([1.0], [[[float("inf")]]], [[[1.0], [1.0], [1.0]]], [[[]]], []):
        with pytest.raises(ValueError, match="weights must be finite"):
            Weights(values)
    with pytest.raises(ValueError, match="action 'p': weights must be finite"):
        actions.from_json({"action": "p", "weights": [[[None]]]})


# --- schedules that forecast ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["unipc", "cog-ddim", "qwen"])
def test_what_schedules_reuse(solver):
    task = task_of(solver)
    expected = {
        "blocks": (oracle_caching.scheduled(task, PATH, "blocks").latents, "r"),
        "residual": (oracle_caching.scheduled(task, PATH, "residual").latents, "r"),
        "output": (last_output(task, PATH), "o"),
        "forecast": (forecast(task, PATH, line(task)).latents, "p"),
    }
    for reuse, (latents, letter) in expected.items():
        for method in (
            vaccel.Schedule(PATH, num_steps=STEPS, reuse=reuse),
            vaccel.LeMiCa(PATH, STEPS, reuse=reuse),
            vaccel.Schedule.from_timeline(LETTERS.replace("p", "r"), reuse=reuse),
        ):
            actual, trace = accelerated(solver, method)
            assert trace.timeline() == LETTERS.replace("p", letter)
            assert distance(actual, latents) < TOLERANCE, (reuse, method.id)
            assert vaccel.method_from_json(json.loads(json.dumps(method.to_json()))) == method
            if method.id == "lemica":
                break  # its schedule is the one before
        for other, (theirs, _) in expected.items():
            assert other == reuse or distance(latents, theirs) > 10 * TOLERANCE


def test_the_papers_reuse_is_the_default():
    assert vaccel.LeMiCa(PATH, STEPS).reuse == "blocks"
    assert vaccel.LeMiCa.preset("wan2.1-t2v-14b", budget=17).reuse == "blocks"
    assert vaccel.Schedule(PATH, num_steps=STEPS) == vaccel.Schedule(PATH, num_steps=STEPS, reuse="blocks")
    assert vaccel.Schedule.from_timeline("Fr") == vaccel.Schedule([0], num_steps=2)
    with pytest.raises(ValueError, match="reuse must be one of 'blocks', 'residual', 'output', 'forecast', got 'head'"):
        vaccel.LeMiCa(PATH, STEPS, reuse="head")


def test_a_timeline_with_forecasts():
    method = vaccel.Schedule.from_timeline("FFpFppFoF")
    assert method.timeline == "FFpFppFoF"
    assert vaccel.method_from_json(json.loads(json.dumps(method.to_json()))) == method
    assert method.stores == (LastOutput(), VelocityHistory(2, False))
    method = vaccel.Schedule.from_timeline("FFpFppFpF")
    task = task_of("unipc")
    expected = forecast(task, (0, 1, 3, 6, 8), line(task))
    actual, trace = accelerated("unipc", method)
    assert trace.timeline() == expected.letters == method.timeline
    assert distance(actual, expected.latents) < TOLERANCE
    with pytest.raises(ValueError, match="reuses what no earlier step has computed"):
        vaccel.Schedule.from_timeline("pF")


@pytest.mark.parametrize(
    ("solver", "bands", "correct"), [("unipc", 2, False), ("unipc", 1, True), ("cog-ddim", 1, True), ("qwen", 1, False)]
)
def test_a_replayed_trace_is_the_run(solver, bands, correct):
    per = "channel, band" if bands == 2 else "channel"
    ran, trace = accelerated(solver, loaded(solver, bands=bands, per=per, correct=correct))
    schedule = trace.as_schedule()
    assert schedule.stores == (VelocityHistory(3 if correct else 2, bands == 2),)
    again = vaccel.method_from_json(json.loads(json.dumps(schedule.to_json())))
    assert again == schedule
    replayed, other = accelerated(solver, again)
    assert torch.equal(replayed, ran)
    assert [s.action for s in other.steps] == [s.action for s in trace.steps]
