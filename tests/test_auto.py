"""Auto: what it picks, what it learns, and that the speed it promises is made of measured times."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from test_calibrate_lemica import sampling

import vaccel
from vaccel.calibrate import calibrate_forecast, calibrate_lemica
from vaccel.integrations.diffusers import beginning
from vaccel.integrations.diffusers.auto import Pilot, Times
from vaccel.methods.auto import VISIBLE, Candidate
from vaccel.planning import artifacts
from vaccel.planning.calibration import calibration
from vaccel.planning.fidelity import Fidelity
from vaccel.planning.prior import shipped

STEPS, PROMPT = 10, "a red cat runs"


@pytest.fixture
def pipe():
    return tiny.wan_pipeline()


def run(pipe, **call):
    return tiny.latents(pipe, steps=STEPS, **call)


def learning(folder, **settings):
    return vaccel.Auto(**{"speedup": 2.0, "learn": 1, "folder": str(folder), **settings})


@pytest.fixture(scope="module")
def forecast_artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("auto") / "forecast.json"
    data = calibrate_forecast(tiny.wan_pipeline(), [PROMPT], path, call=sampling(None, STEPS), tails=3)
    # Of a model this small what was measured is the machine's noise.
    artifacts.replace(path, {**data, "times": {"full": 0.01, "skipped": 0.001, "beside": 0.005}})
    return path


def test_one_thing_is_asked_for():
    with pytest.raises(ValueError, match="a speedup or a psnr"):
        vaccel.Auto()
    for settings, match in (
        ({"speedup": 1.0}, "above 1"),
        ({"speedup": float("nan")}, "number above 0"),
        ({"speedup": 2.0, "learn": -1}, "learn must be"),
        ({"psnr": float("inf")}, "number above 0"),
    ):
        with pytest.raises(ValueError, match=match):
            vaccel.Auto(**settings)
    method = vaccel.Auto(speedup=2.5, learn=1, artifacts=("a.json",))
    assert vaccel.method_from_json(method.to_json()) == method
    with pytest.raises(ValueError, match=r"vaccel\.accelerate"):
        vaccel.Denoiser(lambda x, t, c: x, method=method).run(num_steps=4)


def test_alone_it_is_as_fast_as_nobody_can_see(pipe):
    plain = run(pipe)
    with vaccel.accelerate(pipe) as handle:
        assert handle.method == vaccel.Auto(psnr=VISIBLE)
        run(pipe)
        (note,) = [n for n in handle.trace.notes if n.startswith("Auto: 48 dB asked for")]
        assert "19 runs in 20 above" in note
        assert "as other models': this one's was not measured" in note
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_where_nothing_can_be_known_everything_is_computed(pipe, steps, monkeypatch):
    """Of a single step, of a few, and of a scheduler that does not say its noise levels: no surprise, and a note."""
    plain = tiny.latents(pipe, steps=steps)
    if steps == STEPS:
        monkeypatch.setattr(beginning, "flow_of", lambda *args: None)
    with vaccel.accelerate(pipe) as handle:
        assert torch.equal(tiny.latents(pipe, steps=steps), plain)
        assert handle.trace.timeline() == "F" * steps
        assert any("nothing is known that is safe to skip" in note for note in handle.trace.notes)


def test_without_trial_runs_other_models_tell_the_psnr(pipe, tmp_path):
    """Of errors that are as large as theirs in units of the velocities' own size."""
    path, prior = tmp_path / "f.json", calibration(shipped())
    calibrate_forecast(pipe, [PROMPT], path, call=sampling(None, STEPS), tails=0, trials=())
    known, auto = calibration(path), vaccel.Auto(psnr=40.0, artifacts=(str(path),))
    assert known.fidelity is None
    assert known.scale == pytest.approx(
        math.sqrt(np.einsum("bctt->", known.gram.products) / known.gram.elements / STEPS)
    )
    for candidate in auto.candidates([str(path)], STEPS)[:-1]:  # the last of which has no error
        expected = prior.fidelity.at(known.plan(candidate.budget).predicted / known.scale)
        assert candidate.psnr == pytest.approx(expected)


def test_a_pipeline_that_nothing_is_known_of_is_accelerated_by_the_prior(pipe, tmp_path):
    plain = run(pipe)
    with vaccel.accelerate(pipe, learning(tmp_path, learn=0)) as handle:
        first = run(pipe)
        assert handle.trace.timeline().count("F") < STEPS
        assert any(note.startswith("not calibrated: the prior") for note in handle.trace.notes)
        assert any("Forecast" in note for note in handle.trace.notes if note.startswith("Auto:"))
        assert not torch.equal(first, plain)
        few = tiny.latents(pipe, steps=8, seed=3)
        assert handle.trace.timeline() == "F" * 8
        assert "Auto: of 8 steps nothing is known that is safe to skip: all are computed" in handle.trace.notes
    assert torch.equal(tiny.latents(pipe, steps=8, seed=3), few)
    assert torch.equal(run(pipe), plain)
    assert not {"check_inputs", "maybe_free_model_hooks"} & vars(pipe).keys()


def test_a_calibration_serves_other_steps_and_shifts(pipe, forecast_artifact):
    with vaccel.accelerate(pipe, vaccel.Auto.load(forecast_artifact, speedup=2.0)) as handle:
        for steps in (STEPS, 20):
            tiny.latents(pipe, steps=steps, seed=3)
            assert 1 < handle.trace.timeline().count("F") < steps
        assert any("read at this run's 20" in note for note in handle.trace.notes)


def test_the_first_run_is_exact_and_teaches_the_others(pipe, tmp_path):
    plain = run(pipe)
    with vaccel.accelerate(pipe, learning(tmp_path)) as handle:
        assert torch.equal(run(pipe), plain)
        assert handle.trace.timeline() == "F" * STEPS
        assert any("learning" in note for note in handle.trace.notes)
        fast = run(pipe)
        assert "p" in handle.trace.timeline()
        assert any("predicted error" in note for note in handle.trace.notes)
        assert handle.trace.method["method"] == "forecast"
        assert not torch.equal(fast, plain)
    assert torch.equal(run(pipe), plain)
    with vaccel.accelerate(pipe, learning(tmp_path, learn=0)) as handle:  # found again
        run(pipe)
        assert "p" in handle.trace.timeline()


def test_what_was_learnt_of_something_else_does_not_count(pipe, tmp_path):
    def letters(pipe, **call):
        with vaccel.accelerate(pipe, learning(tmp_path)) as handle:
            run(pipe, **call)
            return set(handle.trace.timeline())

    assert letters(pipe) == {"F"}
    assert letters(pipe) == {"F", "p"}
    assert letters(tiny.wan_pipeline(transformer=tiny.wan_transformer(seed=5))) == {"F"}, "other weights"
    assert letters(tiny.wan_pipeline(scheduler=tiny.unipc(shift=7.0))) == {"F"}, "other levels"
    assert letters(pipe, guidance_scale=2.0) == {"F"}, "another guidance scale"
    assert letters(pipe) == {"F", "p"}


def test_several_runs_add_up(pipe, tmp_path):
    with vaccel.accelerate(pipe, learning(tmp_path, learn=2)) as handle:
        for _ in range(3):
            run(pipe)
        assert ["p" in trace.timeline() for trace in handle.traces] == [False, False, True]
    (file,) = tmp_path.glob("forecast-*[0-9a-f].json")
    once = vaccel.accelerate(pipe, learning(tmp_path / "once"))
    run(pipe)
    once.remove()
    (other,) = (tmp_path / "once").glob("forecast-*.json")
    two, one = (artifacts.unpack(artifacts.read(f, "forecast")["products"]) for f in (file, other))
    np.testing.assert_array_equal(two, 2 * one)
    assert len(artifacts.read(file, "forecast")["samples"]) == 2


def test_a_spoilt_cache_is_learnt_anew(pipe, tmp_path):
    with vaccel.accelerate(pipe, learning(tmp_path)) as handle:
        run(pipe)
        (file,) = tmp_path.glob("forecast-*.json")
        file.write_text(file.read_text()[:-9])
        with pytest.warns(UserWarning, match="cut short"):
            run(pipe)
        assert set(handle.trace.timeline()) == {"F"}
        run(pipe)
        assert "p" in handle.trace.timeline()


def test_an_aborted_run_teaches_nothing(pipe, tmp_path):
    def stop(pipeline, step, timestep, tensors):
        if step == 4:
            raise RuntimeError("enough")
        return tensors

    with vaccel.accelerate(pipe, learning(tmp_path)) as handle:
        with pytest.raises(RuntimeError, match="enough"):
            run(pipe, callback_on_step_end=stop)
        assert not list(tmp_path.glob("forecast-*"))
        run(pipe)
        assert set(handle.trace.timeline()) == {"F"}
        run(pipe)
        assert "p" in handle.trace.timeline()


@pytest.mark.parametrize(("full", "skipped", "beside"), [(1.0, 0.0, 0.0), (1.0, 0.1, 2.0), (0.05, 0.001, 0.3)])
def test_the_budget_is_the_one_nearest_in_measured_time(pipe, forecast_artifact, full, skipped, beside):
    auto = vaccel.Auto(speedup=2.0, artifacts=(str(forecast_artifact),))
    pilot = Pilot(auto, None)
    pilot._modules = [pipe.transformer]
    pilot._times = {"full": [full], "skipped": [skipped], "beside": [beside]}
    pilot._file = forecast_artifact.with_name("none.json")
    candidates = auto.candidates([str(forecast_artifact)], STEPS)
    picked, note = pilot._chosen(candidates, STEPS)

    def speedup(budget):
        run = beside + budget * full + (STEPS - budget) * skipped
        return (beside + STEPS * full) / run

    chosen = len(picked.method.full_steps)
    assert speedup(chosen) == pytest.approx(Times(full, skipped, beside).speedup(chosen, STEPS))
    assert all(abs(speedup(chosen) - 2) <= abs(speedup(c.budget) - 2) + 1e-12 for c in candidates)
    assert f"{speedup(chosen):.2f}x expected" in note


def test_times_are_those_of_the_steps_and_of_the_rest(pipe, forecast_artifact, monkeypatch):
    """With a clock that goes on by 1 a reading, steps and the rest of a call are known exactly."""
    auto = vaccel.Auto(speedup=2.0, artifacts=(str(forecast_artifact),), folder=str(forecast_artifact.parent))
    with vaccel.accelerate(pipe, auto) as handle:
        pilot = handle._session.ruling.pilot
        ticks = iter(range(10_000))
        monkeypatch.setattr("vaccel.integrations.diffusers.scope._now", lambda: float(next(ticks)))
        run(pipe)
        run(pipe)
        assert pilot._times["beside"] == [2.0, 2.0], "one reading where the call begins, one where it ends"
        assert pilot._times["full"] == [1.0, 1.0], "one where each step begins"
        assert pilot._times["skipped"] == [1.0]
        assert handle.trace.timeline() == "F" * STEPS, "by this clock skipping saves nothing"
        assert "2x cannot be had" in handle.trace.notes[-1] + handle.trace.notes[0]


def chosen(pipe, artifact, times, **asked):
    """(computed steps, the note) of what is chosen by these times of a computed step, a skipped one and the rest."""
    auto = vaccel.Auto(artifacts=(str(artifact),), **asked)
    pilot = Pilot(auto, None)
    pilot._modules, pilot._file = [pipe.transformer], artifact.with_name("none.json")
    pilot._times = {name: [value] for name, value in zip(("full", "skipped", "beside"), times, strict=True)}
    picked, note = pilot._chosen(auto.candidates([str(artifact)], STEPS), STEPS)
    return len(picked.method.full_steps), note


def test_a_speed_that_cannot_be_had_is_said_and_costs_no_fidelity_in_vain(pipe, forecast_artifact):
    """The rest of a call takes as long as all its steps: 3x cannot be had, and the last steps skipped gain little."""
    budget, note = chosen(pipe, forecast_artifact, (1.0, 0.0, 10.0), speedup=3.0)
    best = 20 / 12
    assert 20 / (10 + budget) >= 0.9 * best > 20 / (10 + budget + 1)
    assert f"3x cannot be had: beside its computed steps a call takes too long for more than {best:.2f}x" in note
    budget, note = chosen(pipe, forecast_artifact, (1.0, 0.0, 0.0), speedup=2.0)
    assert budget == 5
    assert "cannot" not in note


def test_a_speed_and_a_fidelity_together(pipe, forecast_artifact):
    low, high = 5.0, 400.0
    budget, note = chosen(pipe, forecast_artifact, (1.0, 0.0, 0.0), speedup=2.0, psnr=low)
    assert budget == 5
    assert note.startswith(f"Auto: 2x and {low:g} dB asked for")
    assert "cannot" not in note
    budget, note = chosen(pipe, forecast_artifact, (1.0, 0.0, 0.0), speedup=2.0, psnr=high)
    assert budget == STEPS, "the fidelity comes first"
    assert note.endswith(f"2x cannot be had with {high:g} dB, which allow 1.00x")
    budget, note = chosen(pipe, forecast_artifact, (1.0, 0.0, 0.0), psnr=high)
    assert note.endswith(f"{high:g} dB cannot be promised")


def test_a_fidelity_is_reached_by_nineteen_in_twenty(forecast_artifact):
    auto = vaccel.Auto(psnr=40.0, artifacts=(str(forecast_artifact),))
    known = Fidelity([[(1.0, 0.0)]] * 50 + [[(1.0, -4.0)]] * 2)  # dB for dB; of 52 the second lowest counts
    curve = [Candidate(None, b, 10 ** -(b / 20), known) for b in range(2, 60)]
    lowest = curve[0].psnr[1] - 2
    assert lowest <= -4
    assert auto.reaching(curve).budget == math.ceil(40 - lowest)
    assert auto.reaching(curve[:5]) is None
    assert auto.reaching([Candidate(None, 3, 0.0, None)]) is None


def test_what_no_budget_reaches_is_computed_in_full(pipe, forecast_artifact):
    method = vaccel.Auto(psnr=500.0, artifacts=(str(forecast_artifact),), folder=str(forecast_artifact.parent))
    with vaccel.accelerate(pipe, method) as handle:
        run(pipe)
        assert handle.trace.timeline() == "F" * STEPS
    with vaccel.accelerate(pipe, vaccel.Auto.load(forecast_artifact, psnr=1.0)) as handle:
        run(pipe)
        assert handle.trace.timeline().count("F") < STEPS


def test_of_several_artifacts_the_least_error_wins(pipe, forecast_artifact, tmp_path):
    lemica = tmp_path / "lemica.json"
    calibrate_lemica(pipe, [PROMPT], lemica, call=sampling(pipe, STEPS), max_gap=4)
    auto = vaccel.Auto(speedup=2.0, artifacts=(str(forecast_artifact), str(lemica)))
    both = {c.budget: c for c in auto.candidates(list(auto.artifacts), STEPS)}
    alone = [{c.budget: c for c in auto.candidates([path], STEPS)} for path in auto.artifacts]
    for budget, chosen in both.items():
        assert chosen.error == min(own[budget].error for own in alone if budget in own)
    with vaccel.accelerate(pipe, auto) as handle:
        run(pipe)
        assert handle.trace.timeline().count("F") < STEPS


def test_calibrations_of_another_model_are_left_out(forecast_artifact):
    other = tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=2))
    method = vaccel.Auto.load(forecast_artifact, speedup=2.0)
    with vaccel.accelerate(other, method), pytest.raises(ValueError, match="knows nothing"):
        run(other)


def test_a_psnr_is_guarded_by_default(pipe, forecast_artifact):
    """A model whose forecasts are far more wrong than calibrated is given further steps, and the trace says so."""

    def guards(**settings):
        auto = vaccel.Auto(artifacts=(str(forecast_artifact),), **settings)
        return {c.method.guard for c in auto.candidates([str(forecast_artifact)], STEPS)}

    assert guards(psnr=30.0) == {2.0}
    assert guards(psnr=30.0, guard=1.5) == guards(speedup=2.0, guard=1.5) == {1.5}
    assert guards(psnr=30.0, guard=0) == guards(speedup=2.0) == {None}
    with pytest.raises(ValueError, match="guard must be 0 or more"):
        vaccel.Auto(psnr=30.0, guard=-1)
    auto = vaccel.Auto(psnr=30.0, artifacts=(str(forecast_artifact),), allow_mismatch=True)
    with vaccel.accelerate(pipe, auto) as handle:
        run(pipe)
        as_calibrated = handle.trace
    assert "guard: as calibrated" in as_calibrated.notes
    with torch.no_grad():
        draw = torch.Generator().manual_seed(5)
        for p in pipe.transformer.parameters():
            p.add_(2 * p.std().nan_to_num() * torch.randn(p.shape, generator=draw))
    with vaccel.accelerate(pipe, auto) as handle:
        run(pipe)
        trace = handle.trace
    assert any("forecast errors too large" in note for note in trace.notes)
    assert trace.timeline().count("F") > as_calibrated.timeline().count("F")


def test_a_trial_of_few_steps_says_nothing_of_times():
    """Most of one is what loads and warms up: taken for every call's, it would leave almost no step computed."""
    pipe = tiny.wan_pipeline()
    with vaccel.accelerate(pipe, vaccel.Auto(speedup=2)) as handle:
        times = handle._session.ruling.pilot._times
        tiny.latents(pipe, steps=2)
        assert not any(times.values())
        tiny.latents(pipe, steps=20)
        assert len(times["full"]) == len(times["beside"]) == 1
