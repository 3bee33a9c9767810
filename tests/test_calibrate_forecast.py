"""Forecast's calibration: sums and error_growth against runs by hand, interruptions, several processes, artifacts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import diffusers
import numpy as np
import oracle_forecast as oracle
import processes
import pytest
import tiny
import torch
from calibrated import STEPS, artifact, drawn, pipe_of, sampling
from forecast_loops import between, fitted, forecast, task_of
from test_forecast import PATH, full
from test_oracle import ONE, SEED

import vaccel
from vaccel.calibrate import calibrate_forecast, calibrate_lemica
from vaccel.calibrate import forecast as module
from vaccel.calibrate.samples import hash_of
from vaccel.engine.report import RunReport
from vaccel.planning import artifacts
from vaccel.planning.calibration import calibration, interpolated_error_growth
from vaccel.planning.prior import shipped

OTHER = "a blue dog sleeps"


def said(path):
    """What an artifact says, but for how long it took."""
    data = artifacts.read(path, "forecast")
    data.pop("times", None)
    for sample in data["samples"].values():
        assert sample.pop("seconds") >= sample.pop("seconds_recording") >= 0
    return data


def calibrated(path, prompts=(ONE,), solver="unipc", guidance=5.0, **options):
    settings = {"seeds": [SEED], "tails": 2, "trials": (), "first_order": False, **options}
    return calibrate_forecast(pipe_of(solver), list(prompts), path, call=sampling(solver, guidance), **settings)


@pytest.mark.parametrize(
    ("solver", "guidance", "bands"),
    [
        ("unipc", 5.0, 2),
        ("unipc", 1.0, 1),
        ("cog-ddim", 5.0, 2),
        ("wan-epsilon", 5.0, 1),
        ("qwen", 5.0, 1),
        ("qwen", 1.0, 1),
    ],
)
def test_inner_products_are_sums_over_the_run(solver, guidance, bands):
    made, found = full(solver, guidance), calibration(artifact(solver, guidance, bands=bands)).gram
    assert found.levels == pytest.approx(made.levels, abs=1e-6)
    v = made.trajectory
    assert found.elements == v[0, 0].size
    for band, part in zip(found.products, oracle.bands(v, 0.5) if bands == 2 else (v,), strict=True):
        expected = np.einsum("tcn,ucn->ctu", *[part[0].reshape(STEPS, v.shape[2], -1)] * 2)
        assert np.abs(band - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("solver", "guidance"), [("unipc", 5.0), ("dpm", 1.0), ("cog-ddim", 5.0), ("cog-dpm", 5.0), ("qwen", 1.0)]
)
def test_error_growth_is_an_error_followed_to_the_end(solver, guidance):
    """One step forecast, all others computed: off by so much at the end, and by so much where it arose."""
    made = full(solver, guidance)
    (sample,) = artifacts.read(artifact(solver, guidance, tails=3), "forecast")["samples"].values()
    assert list(sample["error_growth"]) == ["2", "7"]
    for name, growth in sample["error_growth"].items():
        j = int(name)
        without = forecast(task_of(solver, guidance=guidance), set(range(STEPS)) - {j - 1}, fitted(made.trajectory))
        ended = float((without.latents.double() - made.latents.double()).norm())
        begun = oracle.latent_error(made.trajectory, made.levels, oracle.known_after(range(j - 1), 2), j, "channel")
        assert growth == pytest.approx(ended / begun, rel=1e-2 if solver == "cog-dpm" else 2e-3)
        assert growth > 0.01
    found = calibration(artifact(solver, guidance, tails=3)).error_growth
    own = between(sample["error_growth"], STEPS)
    assert found == pytest.approx(drawn(own, 1, sample["levels"][:-1]), rel=1e-9)


def test_error_growth_never_rises_along_a_run():
    """However they scatter: each is pooled with its neighbours, no more of them than need be."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 10):
        for _ in range(20):
            measured = {str(j): math.exp(rng.normal()) for j in rng.choice(50, count, replace=False)}
            found = interpolated_error_growth([measured], 50)
            assert found == pytest.approx(between(measured, 50))
            assert all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(found))
    falling = {"2": 8.0, "5": 4.0, "9": 0.5}
    assert [interpolated_error_growth([falling], 10)[j] for j in (2, 5, 9)] == pytest.approx([8.0, 4.0, 0.5])
    # Of two samples one was followed at fewer steps: a mean counts for as many as it is of.
    uneven = [{"2": 1.0, "5": 8.0}, {"5": 8.0}]
    assert interpolated_error_growth(uneven, 10)[3] == pytest.approx(4.0)


def test_where_error_growth_is_measured():
    assert module.positions_of(50, 10) == [2, 3, 4, 6, 8, 10, 13, 18, 26, 38]
    assert module.positions_of(50, 3) == [2, 8, 38]
    assert module.positions_of(50, 0) == []
    assert module.positions_of(3, 10) == []
    assert module.positions_of(4, 10) == [2, 3]


def test_without_tails_and_trials_error_growth_is_that_of_other_models(tmp_path):
    data = calibrated(tmp_path / "f.json", tails=0)
    (sample,) = data["samples"].values()
    assert sample["error_growth"] == {}
    assert "curves" not in sample
    assert sample["forwards"] == 2 * STEPS
    known = calibration(tmp_path / "f.json")
    prior = calibration(shipped())
    at, growth = np.array(prior.gram.levels[:-1]), np.log(prior.error_growth)
    expected = np.exp(np.interp(sample["levels"][:-1], at[::-1], growth[::-1]))
    assert known.error_growth == pytest.approx(expected.tolist())
    assert known.psnr(0.01) is None
    assert vaccel.Forecast.load(tmp_path / "f.json", budget=4).predicted > 0


def test_error_growth_of_some_samples_only(tmp_path):
    data = calibrated(tmp_path / "f.json", prompts=[ONE, OTHER], tail_samples=1)
    one, other = sorted((s["error_growth"] for s in data["samples"].values()), key=len, reverse=True)
    assert len(one) == 2
    assert other == {}
    levels = next(iter(data["samples"].values()))["levels"][:-1]
    assert calibration(tmp_path / "f.json").error_growth == pytest.approx(drawn(between(one, STEPS), 1, levels))
    both = calibrated(tmp_path / "both.json", prompts=[ONE, OTHER])
    measured = [s["error_growth"] for s in both["samples"].values()]
    mean = {j: math.sqrt(measured[0][j] * measured[1][j]) for j in measured[0]}
    assert calibration(tmp_path / "both.json").error_growth == pytest.approx(drawn(between(mean, STEPS), 2, levels))


def test_trials_are_runs_as_forecast_makes_them(tmp_path):
    data = calibrated(tmp_path / "f.json", trials=(0.4, 0.7))
    (sample,) = data["samples"].values()
    pipe = pipe_of("unipc")

    def clip():
        generator = torch.Generator().manual_seed(SEED)
        call = {**sampling("unipc"), "output_type": "pt", "generator": generator, "return_dict": False}
        with torch.no_grad():
            return pipe(ONE, **call)[0].double()

    plain = clip()
    (curve,) = sample["curves"]
    assert len(curve) == 2
    for budget, (predicted, psnr) in zip((4, 6), curve, strict=True):
        method = vaccel.Forecast.load(tmp_path / "f.json", budget=budget)
        assert predicted == pytest.approx(method.predicted, rel=1e-9)
        with vaccel.accelerate(pipe, method):
            error = float((clip() - plain).square().mean())
        assert psnr == pytest.approx(-10 * math.log10(error), rel=1e-9)
    tails = sum(STEPS - int(j) for j in sample["error_growth"])
    assert sample["forwards"] == 2 * (STEPS + tails + STEPS + 4 + 6), "the trials' full run and theirs are counted"
    assert sample["seconds"] > sample["seconds_recording"] > 0


def test_trials_are_made_with_what_the_other_samples_say(tmp_path):
    """So a curve is of prompts that the weights were not fitted on, as those of tomorrow are."""
    prompts = [ONE, OTHER, "a green bird flies"]
    data = calibrated(tmp_path / "f.json", prompts=prompts, trials=(0.5,), tail_samples=1)
    whole = calibration(tmp_path / "f.json")
    keys = {hash_of(prompt)[:12]: prompt for prompt in prompts}
    for key, sample in data["samples"].items():
        left_out = keys[key.split("-")[0]]
        others = [p for p in prompts if p != left_out]
        calibrated(tmp_path / f"{key}.json", prompts=others, tails=0)
        known = calibration(tmp_path / f"{key}.json")
        known.error_growth = whole.error_growth
        plan = known.plans()[round(0.5 * STEPS)]
        (((predicted, psnr),),) = sample["curves"]
        assert predicted == pytest.approx(plan.predicted, rel=1e-6)
        assert predicted != pytest.approx(whole.plans()[round(0.5 * STEPS)].predicted, rel=1e-6)
        assert psnr > 10


def test_trials_of_older_calibrations_still_tell_a_psnr(tmp_path):
    """Their errors are of paths planned without corrections: those of the plans with as many steps take their place."""
    data, path = calibrated(tmp_path / "f.json"), tmp_path / "f.json"
    (sample,) = data["samples"].values()
    known = calibration(path)
    before, now = known.plans("leximax", corrected=False), known.plans()
    sample["trials"] = [[before[b].predicted, 20.0 + b] for b in (3, 5, 6)]
    artifacts.replace(path, data)
    known = calibration(path)
    assert known.curves == [[(now[b].predicted, 20.0 + b) for b in (3, 5, 6)]]
    assert known.psnr(now[5].predicted)[0] == pytest.approx(25.0)


def test_with_a_first_order_solver_too(tmp_path):
    """The mean of both solvers' products at the calibration's levels, each a run of its own."""
    both = calibrated(tmp_path / "both.json", first_order=True, tails=0)
    own = calibrated(tmp_path / "own.json", tails=0)
    pipe = pipe_of("unipc")
    pipe.scheduler = module.other_solver(pipe.scheduler)
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    fewer = round(0.8 * STEPS)
    settings = {"seeds": [SEED], "tails": 0, "trials": ()}
    calibrate_forecast(pipe, [ONE], tmp_path / "euler.json", call={**sampling("unipc"), "num_inference_steps": fewer},
                       **settings)  # fmt: skip
    at = calibration(tmp_path / "own.json")
    euler = calibration(tmp_path / "euler.json").at(at.gram.levels)
    found = calibration(tmp_path / "both.json").gram
    np.testing.assert_allclose(found.products, (at.gram.products + euler.gram.products) / 2, rtol=1e-6)
    assert found.levels == at.gram.levels
    (one,), (two,) = both["samples"].values(), own["samples"].values()
    assert one["forwards"] == two["forwards"] + 2 * fewer


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: tiny.unipc(3.0), "FlowMatchEulerDiscreteScheduler"),
        (lambda: diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear"), "DDIMScheduler"),
        (lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0), "FlowMatchEulerDiscreteScheduler"),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0), "NoneType"),
        (lambda: diffusers.DDIMScheduler(), "NoneType"),
        (lambda: diffusers.EDMDPMSolverMultistepScheduler(), "NoneType"),
    ],
)
def test_which_first_order_solver_a_scheduler_has(made, expected):
    scheduler = made()
    found = module.other_solver(scheduler)
    assert type(found).__name__ == expected
    shift = scheduler.config.get("flow_shift", scheduler.config.get("shift"))
    if expected.startswith("FlowMatch"):
        assert found.config.shift == shift


@pytest.mark.parametrize("solver", ["unipc", "cog-ddim"])
def test_it_is_the_same_every_time_and_leaves_the_pipeline_alone(solver, tmp_path):
    one, other = tmp_path / "one.json", tmp_path / "new" / "other.json"
    trials = (0.5,) if solver == "unipc" else ()
    calibrated(one, solver=solver, trials=trials)
    calibrated(other, solver=solver, trials=trials, keep="host")
    assert said(one) == said(other)
    before = one.read_text()
    calibrated(one, solver=solver, trials=trials, progress=lambda *told: pytest.fail("nothing is left to do"))
    assert one.read_text() == before
    pipe = pipe_of(solver)
    plain, before = tiny.latents(pipe, steps=STEPS), set(pipe.transformer.__dict__)
    calibrate_forecast(pipe, [ONE], tmp_path / "third.json", call=sampling(solver), trials=(), tails=1)
    assert torch.equal(tiny.latents(pipe, steps=STEPS), plain)
    assert set(pipe.transformer.__dict__) == before
    assert "encode_prompt" not in pipe.__dict__


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("at", [2, 6, 11])
def test_interrupted_and_resumed_it_is_the_same_artifact(at, tmp_path):
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    told = []
    trials = (0.5,) if at > 4 else ()
    calibrated(whole, prompts=[ONE, OTHER], trials=trials, progress=lambda *now: told.append(now))
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert (told[0][0], told[-1][0]) == (0, told[-1][1])
    assert [what for *_, what in told] == [ONE] * 4 + [OTHER] * 4 + ([ONE] * 3 + [OTHER] * 3 if trials else [])

    def interrupting(*now):
        if now == told[at]:
            raise Stop

    with pytest.raises(Stop):
        calibrated(stopped, prompts=[ONE, OTHER], trials=trials, progress=interrupting)
    assert stopped.exists() == (at > 4), "a sample is kept once it is whole"
    if at > 4:
        assert calibration(stopped).gram.num_steps == STEPS, "what there is can be used already"
    calibrated(stopped, prompts=[ONE, OTHER], trials=trials)
    assert said(stopped) == said(whole)


def test_samples_that_are_added_later(tmp_path):
    """In whichever order they come, the artifact says the same but for the rounding of a sum."""
    together, later = tmp_path / "together.json", tmp_path / "later.json"
    calibrated(together, prompts=[ONE, OTHER], bands=2)
    calibrated(later, prompts=[OTHER], bands=2)
    first = calibration(later)
    calibrated(later, prompts=[ONE], bands=2)
    one, other = calibration(together), calibration(later)
    np.testing.assert_allclose(other.gram.products, one.gram.products, rtol=1e-13, atol=1e-13)
    assert np.abs(first.gram.products - one.gram.products).max() > 1e-3
    assert other.error_growth == one.error_growth
    assert said(later)["samples"] == said(together)["samples"]
    assert all("products" not in s for s in other.data["samples"].values()), "only their sum is kept"
    for i, prompt in enumerate((ONE, OTHER)):
        calibrated(tmp_path / f"{i}.json", [prompt], bands=2)
    apart = [calibration(tmp_path / f"{i}.json").gram.products for i in range(2)]
    np.testing.assert_allclose(one.gram.products, sum(apart) / 2, rtol=1e-13, atol=1e-13)


def test_bands_collapse(tmp_path):
    calibrated(tmp_path / "two.json", bands=2, tails=0)
    calibrated(tmp_path / "one.json", tails=0)
    two, one = (calibration(tmp_path / f"{n}.json").gram for n in ("two", "one"))
    assert (len(two.products), len(one.products)) == (2, 1)
    scale = np.abs(one.products).max()
    np.testing.assert_allclose(two.products.sum(axis=0), one.products[0], rtol=0, atol=1e-6 * scale)
    assert two.residual_norm((1, 0), 4) == pytest.approx(one.residual_norm((1, 0), 4), rel=1e-3)


def test_what_is_refused(tmp_path):
    path = tmp_path / "f.json"
    calibrated(path, tails=0)
    text = path.read_text()
    with pytest.raises(ValueError, match=r"another bands \(1 there, 2 here\); choose another file"):
        calibrated(path, bands=2)
    with pytest.raises(ValueError, match="another scheduler"):
        calibrated(path, solver="dpm")
    with pytest.raises(ValueError, match="another call"):
        calibrated(path, guidance=2.0)
    for options in ({"bands": 3}, {"bands": 0}, {"tails": -1}, {"tails": 11}):
        with pytest.raises(ValueError, match="bands must be 1 or 2 and tails 0 to 10"):
            calibrated(path, **options)
    with pytest.raises(ValueError, match="latents with rows and columns"):
        calibrated(tmp_path / "qwen.json", solver="qwen", bands=2)
    assert not (tmp_path / "qwen.json").exists()
    two = tiny.wan_pipeline(transformer_2=tiny.wan_transformer(9), boundary_ratio=0.7)
    with pytest.raises(ValueError, match="two transformers are not supported"):
        calibrate_lemica(two, [ONE], tmp_path / "two.json", call=sampling("unipc"))
    assert path.read_text() == text
    path.write_text(text.replace("forecast", "lemica"))
    with pytest.raises(ValueError, match="not a forecast artifact but one of lemica"):
        calibrated(path)
    path.write_text(text[:100])
    with pytest.raises(ValueError, match="cut short"):
        vaccel.Forecast.load(path, budget=4)


def test_what_was_measured_serves_its_own_run():
    pipe = pipe_of("unipc")
    plain = tiny.latents(pipe, steps=STEPS, seed=SEED)
    method = vaccel.Forecast.load(artifact("unipc", tails=3), budget=4)
    fixed = dataclasses.replace(method, full_steps=PATH)
    off = []
    for chosen in (method, fixed, vaccel.Forecast(PATH, STEPS)):
        with vaccel.accelerate(pipe, chosen):
            off.append((tiny.latents(pipe, steps=STEPS, seed=SEED).double() - plain).square().mean().sqrt().item())
    assert method.predicted / 2 < off[0] < 2 * method.predicted
    assert off[1] < 0.9 * off[2], "better than without calibration on the same path"


def test_processes_share_the_samples(tmp_path):
    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    calibrated(alone, prompts=[ONE, OTHER])
    processes.together(calibrated, shared, [ONE, OTHER])
    assert said(shared) == said(alone)
    assert list(tmp_path.glob("*.part*")) == []


def test_on_the_command_line(tmp_path):
    from test_cli import PROMPT, run

    path = tmp_path / "forecast.json"
    common = ["-p", PROMPT, "--steps", "6"]
    assert "Usage" in run("calibrate", "forecast", "--help").output
    made = run("calibrate", "forecast", *common, "--tails", "1", "--no-trials", "--out", str(path))
    assert made.exit_code == 0, made.output
    # One run of two branches, one of five steps by Euler, and four steps again from step 2 on.
    assert "1 samples, 30 forwards" in " ".join(made.output.split())
    assert set(json.loads(path.read_text())["samples"].popitem()[1]["error_growth"]) == {"2"}
    out = tmp_path / "clip.gif"
    result = run("generate", PROMPT, "-m", f"Forecast(artifact='{path}', budget=4)", "--steps", "6", "--out", str(out))
    assert result.exit_code == 0, result.output
    refused = run("calibrate", "forecast", *common, "--bands", "2", "--out", str(path))
    assert refused.exit_code == 2
    assert "another bands" in " ".join(refused.output.split())
    assert run("calibrate", "forecast", *common, "--keep", "disk").exit_code == 2


def test_times_are_those_of_the_steps_that_were_computed(monkeypatch):
    """A method may compute other steps than it lists, at a run's own noise levels: the trace knows."""
    from vaccel.integrations.diffusers import reporting

    def told(name, trace, seconds, times, error):
        return RunReport(name, trace, seconds, tuple(1.0 if s.action.is_full else 0.01 for s in trace.steps), error)

    monkeypatch.setattr(reporting, "RunReport", told)
    call = {**tiny.WAN_CALL, "guidance_scale": 5.0, "num_inference_steps": 30}
    times = module.times_of(tiny.wan_pipeline(), "a red cat runs", 0, call, 30)["times"]
    assert (times["full"], times["skipped"]) == (1.0, 0.01)
