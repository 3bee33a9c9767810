"""Forecasts of models beyond one tensor and one transformer, and of guidance that changes or pauses."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import oracle_forecast as oracle
import pytest
import tiny
import torch
from beyond import JointPipeline, close, forecast_by_hand, line, loop, record, weighed
from diffusers import FlowMatchEulerDiscreteScheduler
from forecast_loops import distance
from oracle_beyond import relative, run_changing
from test_oracle import TOLERANCE
from zoo.base import generate, load_all

import vaccel
from vaccel.calibrate import calibrate_forecast
from vaccel.planning import artifacts
from vaccel.planning.calibration import calibration
from vaccel.planning.gram import Gram

STEPS = 12
PATH = (0, 1, 4, 11)
BOUNDARY = 7  # the first step of the second transformer, at a shift of 3 and a boundary of 0.7
SCALES = (5.0, 3.0)


# -- two transformers ------------------------------------------------------------------------------------------------


def euler():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def two(second=None, **options):
    second = tiny.wan_transformer(9) if second is None else second
    return tiny.wan_pipeline(euler(), transformer_2=second, boundary_ratio=0.7, **options)


def nearly(transformer):
    """Weights a thousandth off."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in transformer.parameters():
            p.mul_(1 + 1e-3 * torch.randn(p.shape, generator=draw))
    return transformer


def run(pipe, steps=STEPS, **call):
    return tiny.latents(pipe, steps=steps, guidance=SCALES[0], guidance_scale_2=SCALES[1], **call)


def test_velocities_go_on_where_another_transformer_takes_over():
    """By branch: the second transformer's steps are forecast from the first one's, and guided with its own scale."""
    pipe = two()
    x, sigmas, branches = loop(pipe)
    expected, forwards = run_changing(
        lambda i: branches, lambda i: SCALES[i >= BOUNDARY], x, sigmas, PATH, line(sigmas)
    )
    for method in (vaccel.Forecast(PATH, STEPS), vaccel.Schedule(PATH, num_steps=STEPS, reuse="forecast")):
        with vaccel.accelerate(pipe, method) as handle:
            made, trace = run(pipe), handle.trace
        assert trace.timeline() == "FFppFppppppF"
        assert [s.large for s in trace.steps] == forwards
        assert all(not s.reason for s in trace.steps)
        assert close(made, expected.latents)
        with vaccel.accelerate(pipe, trace.as_schedule()):
            assert torch.equal(run(pipe), made)
    apart, _ = run_changing(lambda i: branches, lambda i: SCALES[0], x, sigmas, PATH, line(sigmas))
    assert not close(made, apart.latents), "the second scale matters"


@pytest.mark.parametrize("like", [False, True])
def test_one_calibration_of_both_plans_across_the_boundary(like, tmp_path):
    """Weights, errors and the best path are those of the whole run's trajectory, by brute force over all paths.

    Where the second transformer is another one, what it is given first is computed; where it goes on like the first
    one, it need not be.
    """
    steps, path = 9, tmp_path / "both.json"
    pipe = two(nearly(tiny.wan_transformer()) if like else None)
    call = {k: v for k, v in tiny.WAN_CALL.items() if k != "output_type"}
    call |= {"num_inference_steps": steps, "guidance_scale": SCALES[0], "guidance_scale_2": SCALES[1]}
    calibrate_forecast(pipe, ["a red cat runs"], path, seeds=[0], call=call, tails=2, trials=(0.5,))
    x, sigmas, branches = loop(pipe, steps)
    boundary = next(i for i, t in enumerate(pipe.scheduler.timesteps) if t < 700)
    full, _ = run_changing(lambda i: branches, lambda i: SCALES[i >= boundary], x, sigmas, range(steps), line(sigmas))
    trajectory = np.stack(full.velocities, axis=1)  # [1, T, C, ...]
    known = calibration(path)
    growth, elements = known.error_growth, trajectory[0, 0].size ** 0.5
    best = oracle.best_paths(trajectory, sigmas, growth, 2, 15, "channel", "leximax")
    fitted = lambda i, f: oracle.coefficients(trajectory, f, i, "channel")  # noqa: E731
    crossing = 0
    for budget in (3, 4, 5):
        method = vaccel.Forecast.load(path, budget, objective="leximax", correct=False)
        assert method.full_steps == best[budget][0]
        assert method.max_error * elements == pytest.approx(best[budget][1][0], rel=1e-4)
        crossing += boundary not in method.full_steps
        expected, _ = run_changing(
            lambda i: branches, lambda i: SCALES[i >= boundary], x, sigmas, method.full_steps, fitted
        )
        with vaccel.accelerate(pipe, method) as handle:
            assert close(run(pipe, steps), expected.latents)
            assert handle.trace.calls["large"] == 2 * budget
    assert bool(crossing) == like
    with pytest.raises(ValueError, match="calibrated with another pipeline"):
        vaccel.accelerate(two(tiny.wan_transformer(10)), vaccel.Forecast.load(path, 4))


def test_corrections_pay_back_across_the_boundary(tmp_path):
    """A step that the second transformer computes makes up for what the first one's forecasts were off by."""
    pipe, path, full = two(), tmp_path / "both.json", (0, 1, 2, 4, 8, 11)
    x, sigmas, branches = loop(pipe)
    record(pipe, lambda: run(pipe), path)
    method = dataclasses.replace(vaccel.Forecast.load(path, 6), full_steps=full)
    with vaccel.accelerate(pipe, method) as handle:
        made, steps = run(pipe), handle.trace.steps
    given = [getattr(s.action, "correction", None) or getattr(s.action, "weights", None) for s in steps]
    values = {i: w.values[:, 0].astype(float) for i, w in enumerate(given) if w is not None}
    assert {i: len(values[i]) for i in full if i in values} == {4: 3, 8: 3, 11: 3}
    expected, forwards = run_changing(
        lambda i: branches, lambda i: SCALES[i >= BOUNDARY], x, sigmas, full, lambda i, known: values[i],
        corrections=values,
    )  # fmt: skip
    assert [s.large for s in steps] == forwards
    assert close(made, expected.latents)
    with vaccel.accelerate(pipe, dataclasses.replace(method, correct=False)):
        plain = run(pipe)
    exact = run(pipe)
    assert distance(made, exact) < distance(plain, exact)


def test_equal_transformers_are_as_one(tmp_path):
    """On the trained family: split into two at a boundary, its runs are what they are without one, bit for bit."""
    from vaccel import demo

    family = demo.load()
    pipe, made = family.pipe, []

    def clip():
        generator = torch.Generator().manual_seed(0)
        caption = "a red circle moves left slowly on a gray background"
        return pipe(caption, num_inference_steps=14, output_type="latent", generator=generator, **family.call).frames

    for ratio in (None, 0.9, 0.5):
        if ratio is not None:
            pipe.register_modules(transformer_2=copy.deepcopy(pipe.transformer))
            pipe.register_to_config(boundary_ratio=ratio)
        with vaccel.accelerate(pipe, vaccel.Forecast.prior(6)) as handle:
            made.append((clip(), handle.trace.timeline(), handle.trace.calls["large"]))
        pipe.register_modules(transformer_2=None)
        pipe.register_to_config(boundary_ratio=None)
    for latents, timeline, forwards in made[1:]:
        assert timeline == made[0][1]
        assert forwards == made[0][2] == 12
        assert torch.equal(latents, made[0][0])


def test_a_skipped_step_loads_no_transformer():
    pipe = two()
    with vaccel.accelerate(pipe, vaccel.Forecast(PATH, STEPS)):
        pipe.enable_model_cpu_offload(device="cpu")
        loaded = []
        for name in ("transformer", "transformer_2"):
            hook = getattr(pipe, name)._hf_hook
            real = hook.pre_forward
            hook.pre_forward = lambda *a, name=name, real=real, **k: loaded.append(name) or real(*a, **k)
        run(pipe)
    assert loaded == ["transformer"] * 6 + ["transformer_2"] * 2


def test_a_skipped_step_asks_no_transformer_how_it_answers():
    """One that nobody describes answers as the one before it of the same class did."""
    pipe, calls = JointPipeline(second=True), []
    pipe.net_2.register_forward_hook(lambda *_: calls.append(1))
    with vaccel.accelerate(pipe, vaccel.Forecast((0, 1, 3, 8), 9)) as handle:
        made = pipe(9)
        assert handle.trace.calls["large"] == 4
        assert all(not s.reason for s in handle.trace.steps)
    assert len(calls) == 1
    pipe = JointPipeline()
    with vaccel.accelerate(pipe, vaccel.Forecast((0, 1, 3, 8), 9)):
        assert all(torch.equal(a, b) for a, b in zip(pipe(9), made, strict=True))


def test_memory_is_planned_for_one_history(wan):
    for pipe in (wan, tiny.wan_pipeline(transformer_2=tiny.wan_transformer(9), boundary_ratio=0.7)):
        with vaccel.accelerate(pipe, vaccel.Forecast(PATH, STEPS)) as handle:
            plan = handle.memory_plan(**tiny.arguments(pipe, steps=STEPS))
            tiny.latents(pipe, steps=STEPS)
            assert handle.nbytes == plan["total"] == 2 * 2 * 16 * 3 * 4 * 4 * 4


# -- several tensors -------------------------------------------------------------------------------------------------


def trajectories(recorded):
    """What was recorded of the joint pipeline, as oracle trajectories [S, T, C, n] of the picture and of the sound."""
    flat = recorded.velocities[:, :, 0].double().numpy().swapaxes(0, 1)  # [S, T, elements]
    picture = flat[:, :, :60].reshape(*flat.shape[:2], 4, 15)
    return picture, flat[:, :, 60:].reshape(*flat.shape[:2], 9, 2).swapaxes(2, 3)


def test_tensors_have_weights_of_their_own(tmp_path):
    """Sound beside a picture: recorded, planned and forecast by tensor and channel, each by its own mean square."""
    pipe, path, steps = JointPipeline(), tmp_path / "joint.json", 9
    recorded = record(pipe, pipe, path)
    known = calibration(path)
    picture, sound = trajectories(recorded)
    assert known.gram.tensors == (4, 2)
    for begin, each in ((0, picture), (4, sound)):
        products = np.einsum("stce,suce->ctu", each, each) / len(each)
        np.testing.assert_allclose(known.gram.products[0, begin : begin + each.shape[2]], products, rtol=1e-9)
    sigmas = pipe.scheduler.sigmas.double().tolist()
    joined = relative([picture, sound])
    best = oracle.best_paths(joined, sigmas, known.error_growth, 2, 15, "channel", "leximax")
    loud = oracle.best_paths(
        np.concatenate([picture, np.pad(sound, [(0, 0)] * 3 + [(0, 6)])], axis=2), sigmas, known.error_growth, 2, 15,
        "channel", "leximax",
    )  # fmt: skip
    assert any(best[n][0] != loud[n][0] for n in (3, 4, 5)), "the loud sound would decide alone"
    elements = 78**0.5
    for budget in (3, 4, 5):
        method = vaccel.Forecast.load(path, budget, objective="leximax", correct=False)
        assert method.full_steps == best[budget][0]
        assert method.max_error * elements == pytest.approx(best[budget][1][0], rel=1e-4)
        with vaccel.accelerate(pipe, method) as handle:
            made = pipe()
            weights = [s.action.weights.values.shape for s in handle.trace.steps if s.action.letter == "p"]
        assert {shape[1:] for shape in weights} == {(1, 6)}
        for got, want in zip(made, by_hand(pipe, method.full_steps, picture, sound, steps), strict=True):
            assert distance(got, want) < TOLERANCE


def by_hand(pipe, path, picture, sound, steps, per="channel"):
    """The pipeline's own loop with each tensor forecast by itself."""

    def rule(number, known, velocities, step):
        weights = oracle.coefficients((picture, sound)[number], known, step, per)
        if per == "tensor":
            weights = np.repeat(weights, (4, 2)[number], axis=1)
        return weighed(velocities, weights, (1, 2)[number])

    with forecast_by_hand([pipe.net], 1, path, rule):
        return pipe(steps)


def test_one_weight_a_tensor(tmp_path):
    """``per="tensor"`` is one set of weights for each of them, not one for both."""
    pipe, path = JointPipeline(), tmp_path / "joint.json"
    picture, sound = trajectories(record(pipe, pipe, path))
    method = vaccel.Forecast.load(path, 4, per="tensor", correct=False)
    with vaccel.accelerate(pipe, method):
        made = pipe()
    expected = by_hand(pipe, method.full_steps, picture, sound, 9, "tensor")
    assert all(distance(a, b) < TOLERANCE for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize("correct", [False, True])
def test_guards_and_corrections_of_several_tensors(tmp_path, correct):
    """On the calibrated run itself forecast errors are nearly the calibrated ones; a replay is the run."""
    pipe, path = JointPipeline(), tmp_path / "joint.json"
    record(pipe, pipe, path)
    with vaccel.accelerate(pipe, vaccel.Forecast.load(path, 6, guard=50.0, correct=correct)) as handle:
        made, trace = pipe(), handle.trace
    ratios = [s.metrics["forecast_error"] for s in trace.steps if "forecast_error" in s.metrics]
    assert ratios
    assert all(0 < r < 50 for r in ratios)
    assert "guard: as calibrated" in trace.notes
    assert any(getattr(s.action, "correction", None) is not None for s in trace.steps) == correct
    with vaccel.accelerate(pipe, trace.as_schedule()):
        again = pipe()
    assert all(torch.equal(a, b) for a, b in zip(again, made, strict=True))


def test_ltx2_weighs_video_and_sound_apart(tmp_path):
    """Four predictions in three forwards a step, each of video and sound."""
    case = load_all()["LTX2Pipeline"]
    pipe, path = case.build(), tmp_path / "ltx2.json"
    recorded = record(pipe, lambda: generate(case, pipe, 8), path)
    video, sound = recorded.channels.pieces
    assert (video.shape, video.axis, sound.shape, sound.axis) == ((48, 4), 2, (9, 4), 2)
    assert calibration(path).gram.products.shape == (1, 8, 8, 8)
    parts = [piece.of(recorded.velocities).double().numpy() for piece in (video, sound)]
    moved = [np.moveaxis(v, 0, 1).swapaxes(2, 3) for v in parts]  # [S, T, C, tokens]
    method = vaccel.Forecast.load(path, 4, correct=False)

    def rule(number, known, velocities, step):
        return weighed(velocities, oracle.coefficients(moved[number], known, step, "channel"), 2)

    with forecast_by_hand([pipe.transformer], 3, method.full_steps, rule) as computed:
        expected = generate(case, pipe, 8, output_type="latent")
    assert sorted(set(computed)) == list(method.full_steps)
    with vaccel.accelerate(pipe, method) as handle:
        made = generate(case, pipe, 8, output_type="latent")
        assert handle.trace.calls["large"] == 4 * 4
    assert len(made) == 2
    assert all(distance(a, b) < TOLERANCE for a, b in zip(made, expected, strict=True))


def test_artifacts_of_several_tensors_made_before_they_were_told_apart(tmp_path):
    """One weight for all, as it was; where every element counted as a channel, one weight for all too, and said."""
    pipe, path = JointPipeline(), tmp_path / "joint.json"
    record(pipe, pipe, path)
    data = artifacts.read(path, "forecast")
    (sample,) = data["samples"].values()
    both = calibration(path).gram.products.sum(axis=1, keepdims=True)
    from vaccel.planning.calibration import packed

    made = []
    for channels in (1, 78):
        del sample["tensors" if channels == 1 else "channels"]
        sample["channels"] = channels
        data.pop("products", None)
        sample["products"] = packed(np.repeat(both / channels, channels, axis=1))
        artifacts.replace(path, data)
        method = vaccel.Forecast.load(path, 4, correct=False)
        with vaccel.accelerate(pipe, method) as handle:
            made.append(pipe())
            said = [note for note in handle.trace.notes if "one weight for all" in note]
            assert len(said) == (channels == 78)
            assert {s.action.weights.values.shape[2] for s in handle.trace.steps if s.action.letter == "p"} == {1}
    assert all(distance(a, b) < TOLERANCE for a, b in zip(*made, strict=True))


def test_what_a_schema_says_of_tensors(tmp_path):
    pipe, path = JointPipeline(), tmp_path / "joint.json"
    record(pipe, pipe, path)
    data = artifacts.read(path, "forecast")
    (sample,) = data["samples"].values()
    for tensors, said in [([4, 3], "6 channels together, got 7"), ([[4, 60], [2, 18]], "tensors"), ([], "tensors")]:
        sample["tensors"] = tensors
        artifacts.replace(path, data)
        with pytest.raises(ValueError, match=said):
            artifacts.read(path, "forecast")


def test_one_tensor_is_weighed_as_it_was():
    """In the latents' own units, whatever ``weighed`` makes of several."""
    products = np.einsum("cte,cse->cts", *[np.random.default_rng(0).standard_normal((3, 5, 7))] * 2)[None]
    gram = Gram(tuple(np.linspace(1, 0, 6)), products, 21)
    assert gram.weighed("channel") is gram.grouped("channel")
    as_one = Gram(gram.levels, products, 21, (3,))
    unit = np.trace(products.sum(axis=(0, 1))) / (5 * 21)
    np.testing.assert_allclose(as_one.weighed("channel") * unit, gram.grouped("channel"))
    np.testing.assert_array_equal(as_one.weights((1, 0), 3), gram.weights((1, 0), 3))
    assert as_one.weights((1, 0), 3, "tensor").shape == (2, 1, 3)
