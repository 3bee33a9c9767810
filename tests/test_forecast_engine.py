"""What forecasts hold, in loops of one's own, with guidance that comes and goes; and what a recording leaves behind."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracle_forecast as oracle
import pytest
import tiny
import torch
from calibrated import STEPS, artifact, pipe_of
from forecast_loops import forecast, task_of
from test_forecast import PATH, TWO, loaded
from test_oracle import ONE, SEED

import vaccel
from vaccel.integrations.diffusers.schedulers import flow_of
from vaccel.methods.recording import Recording
from vaccel.planning import flow
from vaccel.planning.flow import Flow

# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("solver", ["unipc", "cog-ddim", "qwen"])
def test_the_plan_is_what_is_allocated(solver, guidance):
    pipe = pipe_of(solver)
    one = loaded(solver, guidance, path=(0, 1, 2, 4, 8))
    methods = [
        (vaccel.Forecast((0, 1, 4, 8), STEPS), 2),
        (vaccel.Forecast((0, 1, 2, 8), STEPS, order=3), 3),
        (vaccel.Schedule((0, 1, 4, 8), num_steps=STEPS, reuse="forecast"), 2),
        (one, 2),
        (dataclasses.replace(one, guard=9.0), 3),
        (dataclasses.replace(one, correct=True), 3),
        (dataclasses.replace(one, correct=True, guard=9.0, order=3), 4),
    ]
    if solver != "qwen":
        banded = loaded(solver, guidance, bands=2, per="band", path=(0, 1, 2, 4, 8))
        methods += [(banded, 4), (dataclasses.replace(banded, guard=9.0), 6)]
    branches = 2 if guidance > 1 else 1
    latents = task_of(solver, guidance=guidance).latents.numel() * 4
    for method, velocities in methods:
        with vaccel.accelerate(pipe, method) as handle:
            plan = handle.memory_plan(**tiny.arguments(pipe, steps=STEPS, guidance=guidance))
            assert handle.nbytes == 0
            tiny.latents(pipe, steps=STEPS, guidance=guidance)
            guided = latents if getattr(method, "guard", None) else 0
            assert handle.nbytes == plan["total"] == velocities * branches * latents + guided, method
            assert plan["large.velocities"] == velocities * branches * latents


# --- loops of one's own ---------------------------------------------------------------------------------------------

LEVELS = (1.0, 0.93, 0.85, 0.7, 0.62, 0.45, 0.3, 0.18, 0.0)


def callables():
    """A model as a callable, and the same in numpy."""
    mixed = np.random.default_rng(0).standard_normal((3, 3)) / 2

    def plain(x, t, condition):
        return np.sin(3 * np.einsum("cd,bdhw->bchw", mixed, x) + condition + 2 * t)

    return lambda x, t, condition: torch.from_numpy(plain(x.double().numpy(), t, condition)).to(x.dtype), plain


def drawn():
    return np.random.default_rng(1).standard_normal((2, 3, 4, 5))


def by_hand(model, x, path, scale, *, kind="flow_prediction", guided=lambda i: True):
    """The oracle's loop; a branch has to have been computed no longer ago than the first one."""
    past, letters = {"cond": {}, "uncond": {}}, []
    angle = [s * np.pi / 2 * 0.98 for s in LEVELS]  # the places of a diffusion model
    places = [
        (1 - s, s) if kind == "flow_prediction" else (np.cos(a), np.sin(a)) for a, s in zip(angle, LEVELS, strict=True)
    ]
    levels, forwards = [s / (a + s) for a, s in places], 0
    for i in range(8):
        out = {}
        for name, condition in [("cond", 0.3), ("uncond", -0.4)][: 2 if guided(i) else 1]:
            known = oracle.known_after([f for f in past[name] if f < i], 2)
            if i in path or not known or known[0] < max(f for f in past["cond"] if f < i):
                prediction = model(x, LEVELS[i], condition)
                past[name][i] = oracle.flow_space(*places[i], x, prediction, kind)[2]
                forwards += 1
                out[name] = past[name][i]
            else:
                out[name] = oracle.uncalibrated([past[name][f] for f in known], levels, known, i, 0.5)
        v = out["cond"]
        if guided(i):
            v = out["uncond"] + scale * (out["cond"] - out["uncond"])
        x = oracle.euler_step_in_flow_space(*places[i], *places[i + 1], x, v)
        letters.append("F" if i in path else "p")
    return x, "".join(letters), levels, places, forwards


def ours(method, model, levels, places, scale, *, kind="flow_prediction", guided=lambda i: True):
    """(latents, trace) of a ``Denoiser`` in the same loop."""
    denoiser = vaccel.Denoiser(model, method=method, guidance=scale)
    scales = None if kind == "flow_prediction" else tuple(flow.scales(kind, *place) for place in places[:-1])
    x = torch.from_numpy(drawn())
    with denoiser.run(8, flow=Flow(tuple(levels), scales)) as run:
        for i in range(8):
            prediction = run.step(i, LEVELS[i], x, 0.3, -0.4 if guided(i) else None)
            velocity = oracle.flow_space(*places[i], x.numpy(), prediction.numpy(), kind)[2]
            x = torch.from_numpy(oracle.euler_step_in_flow_space(*places[i], *places[i + 1], x.numpy(), velocity))
    return x.numpy(), run.trace


@pytest.mark.parametrize("kind", ["flow_prediction", "v_prediction", "epsilon"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_callables(kind, scale):
    ready, model = callables()
    path, guided = (0, 1, 4, 7), lambda i: scale > 1
    expected, letters, levels, places, forwards = by_hand(model, drawn(), path, scale, kind=kind, guided=guided)
    for method in (vaccel.Forecast(path, 8), vaccel.Schedule(path, num_steps=8, reuse="forecast")):
        actual, trace = ours(method, ready, levels, places, scale, kind=kind, guided=guided)
        assert trace.timeline() == letters == "FFppFppF"
        assert trace.calls["large"] == forwards
        assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)
    even = by_hand(model, drawn(), range(8), scale, kind=kind, guided=guided)[0]
    assert np.linalg.norm(even - expected) > 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("span", [(2, 8), (3, 8), (0, 5), (0, 99)], ids=str)
def test_guidance_that_comes_and_goes(span):
    """A branch is forecast from its own steps, with weights for them, and computed where it has none so new."""
    ready, model = callables()
    path = (0, 1, 4, 5)
    for guided in (lambda i: span[0] <= i < span[1], lambda i: not span[0] <= i < span[1]):
        expected, letters, levels, places, forwards = by_hand(model, drawn(), path, 4.0, guided=guided)
        actual, trace = ours(vaccel.Forecast(path, 8), ready, levels, places, 4.0, guided=guided)
        assert trace.timeline() == letters
        assert trace.calls["large"] == forwards
        assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)


def test_flows_of_a_loop():
    ready, _ = callables()
    denoiser = vaccel.Denoiser(ready, method=vaccel.Forecast((0, 1), 8))
    with pytest.raises(ValueError, match="flow has the levels of 4 steps, the run has 8"):
        denoiser.run(8, flow=Flow.even(4))
    with pytest.raises(ValueError, match="this forecast is for 8 steps, the run has 4"):
        denoiser.run(4)
    # Without a flow the levels are evenly spaced.
    with denoiser.run(8) as run:
        for i in range(4):
            run.step(i, 0.5, torch.from_numpy(drawn()), 0.3)
    assert [s.action.weights.values.ravel().tolist() for s in run.trace.steps[2:]] == [[1.5, -0.5], [2.0, -1.0]]
    # A calibration is read at the levels where they are known, and is for its own number of steps where they are not.
    calibrated = vaccel.Forecast.load(artifact("unipc"), budget=5)
    with vaccel.Denoiser(ready, method=calibrated).run(STEPS, flow=Flow.even(STEPS)) as run:
        assert "read at this run's 9" in run.trace.notes[0]
    vaccel.Denoiser(ready, method=calibrated).run(STEPS)
    with pytest.raises(ValueError, match="this forecast is for 9 steps, the run has 12"):
        vaccel.Denoiser(ready, method=calibrated).run(12)


# --- recordings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [5.0, 1.0], ids=["cfg", "no-cfg"])
@pytest.mark.parametrize("solver", ["unipc", "wan-epsilon", "cog-ddim", "qwen"])
def test_a_recording_changes_nothing_and_has_every_velocity(solver, guidance):
    prompt = ["a red cat runs", "blue dog"] if solver == "qwen" else TWO
    pipe = pipe_of(solver)
    plain = tiny.latents(pipe, prompt, steps=STEPS, seed=SEED, guidance=guidance)
    expected = forecast(task_of(solver, prompt, guidance), range(STEPS), None).trajectory
    recorded = {}
    for keep in ("device", "host"):
        with vaccel.accelerate(pipe, Recording(keep=keep)) as handle:
            assert torch.equal(tiny.latents(pipe, prompt, steps=STEPS, seed=SEED, guidance=guidance), plain)
            assert handle.trace.timeline() == "F" * STEPS
            velocities, path, _ = handle.trace.delivered
            assert "delivered" not in handle.trace.to_json()
            recorded[keep] = velocities.clone()
            assert path.levels == flow_of(pipe.scheduler).levels
            axis = handle.family.channel_axis
    assert torch.equal(*recorded.values())
    assert velocities.shape == (STEPS, *plain.shape) if solver != "qwen" else (STEPS, 2, 6, 16)
    assert velocities.dtype == torch.float32
    wide = np.moveaxis(velocities.double().numpy(), axis + 1 if axis > 0 else axis, 2).swapaxes(0, 1)
    assert np.linalg.norm(wide - expected) < 1e-5 * np.linalg.norm(expected)
    assert torch.equal(tiny.latents(pipe, prompt, steps=STEPS, seed=SEED, guidance=guidance), plain)


def test_a_run_that_stops_delivers_nothing(wan):
    def stop(pipe, i, t, kwargs):
        if i == 4:
            raise KeyboardInterrupt
        return kwargs

    with vaccel.accelerate(wan, Recording()) as handle:
        with pytest.raises(KeyboardInterrupt):
            tiny.latents(wan, ONE, callback_on_step_end=stop)
        assert handle.trace.delivered is None
        tiny.latents(wan, ONE)
        assert len(handle.trace.delivered.velocities) == 12
    with pytest.raises(ValueError, match="keep must be 'device' or 'host', got 'disk'"):
        Recording(keep="disk")


def test_velocities_in_half_precision_are_kept_in_single():
    pipe = tiny.wan_pipeline(transformer=tiny.wan_transformer().to(torch.bfloat16))
    with vaccel.accelerate(pipe, Recording()) as handle:
        tiny.latents(pipe, steps=STEPS, guidance=1.0)
        velocities = handle.trace.delivered.velocities
        assert velocities.dtype == torch.float32
        assert torch.equal(velocities, velocities.bfloat16().float())
    with vaccel.accelerate(pipe, vaccel.Forecast(PATH, STEPS)) as handle:
        assert torch.isfinite(tiny.latents(pipe, steps=STEPS)).all()
        latents = task_of("unipc").latents.numel()
        assert handle.nbytes == 2 * 2 * latents * 2
