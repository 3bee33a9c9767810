"""Forecasts where guidance changes, pauses or comes back during a run: by branch, so that a change costs nothing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import oracle_forecast as oracle
import pytest
import tiny
import torch
from beyond import close, line, loop, record, weighed
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import SD3CFGCutoffCallback, SDCFGCutoffCallback
from forecast_loops import distance
from oracle_beyond import run_changing
from test_oracle import TOLERANCE
from zoo.base import generate, load_all

import vaccel
from vaccel.demo import image_family
from vaccel.methods.recording import Recording
from vaccel.planning.flow import Flow

STEPS = 12


def euler():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def scales(moving):
    """A callback that sets the guidance scale of the step that follows."""

    def change(pipe, i, t, kwargs):
        pipe._guidance_scale = moving(i + 1)
        return kwargs

    return change


def guided(pipe, moving, **call):
    return tiny.latents(pipe, steps=STEPS, guidance=moving(0), callback_on_step_end=scales(moving), **call)


#: Of Wan's pipelines, which are guided by the scale that they are called with wherever they are guided.
MOVING = {
    "changes": lambda i: 2.0 + 0.5 * i,
    "pauses": lambda i: 1.0 if 3 <= i < 7 else 4.0,
    "pauses at once": lambda i: 1.0 if 1 <= i < 6 else 4.0,
    "ends early": lambda i: 1.0 if i >= 5 else 4.0,
}


@pytest.mark.parametrize("name", MOVING)
def test_guidance_that_moves(name):
    """A change of w costs nothing; a branch that comes back is computed once, and forecast from its own steps then."""
    pipe, moving, path = tiny.wan_pipeline(euler()), MOVING[name], (0, 1, 5, 9, 11)
    x, sigmas, branches = loop(pipe)

    def present(i):
        return branches if moving(i) > 1 else {"cond": branches["cond"]}

    expected, forwards = run_changing(present, lambda i: moving(0), x, sigmas, path, line(sigmas))
    for method in (vaccel.Forecast(path, STEPS), vaccel.Schedule(path, num_steps=STEPS, reuse="forecast")):
        with vaccel.accelerate(pipe, method) as handle:
            made, trace = guided(pipe, moving), handle.trace
        assert [s.large for s in trace.steps] == forwards
        assert close(made, expected.latents)
        assert any("branch 1 computed in full" in s.reason for s in trace.steps) == (
            name in ("pauses", "pauses at once")
        )
        own = [s.index for s in trace.steps if getattr(s.action, "own", ())]
        assert bool(own) == (name in ("pauses", "pauses at once"))
        again = vaccel.method_from_json(json.loads(json.dumps(trace.as_schedule().to_json())))
        with vaccel.accelerate(pipe, again) as handle:
            assert torch.equal(guided(pipe, moving), made)
            assert [s.large for s in handle.trace.steps] == forwards
    if name == "changes":
        assert all(not s.reason for s in trace.steps)


@pytest.mark.parametrize("name", MOVING)
def test_a_recording_with_moving_guidance_is_a_valid_sample(name, tmp_path):
    """The guided velocity of a step is by its own scale, not by that which a callback has set for the next."""
    pipe, moving = tiny.wan_pipeline(euler()), MOVING[name]
    x, sigmas, branches = loop(pipe)

    def present(i):
        return branches if moving(i) > 1 else {"cond": branches["cond"]}

    full, _ = run_changing(present, lambda i: moving(0), x, sigmas, range(STEPS), line(sigmas))
    recorded = record(pipe, lambda: guided(pipe, moving), tmp_path / "moving.json")
    assert close(recorded.velocities, np.stack(full.velocities))
    trajectory, path = np.stack(full.velocities, axis=1), (0, 1, 5, 9, 11)
    method = vaccel.Forecast.load(tmp_path / "moving.json", 5, correct=False)
    fitted = lambda i, f: oracle.coefficients(trajectory, f, i, "channel")  # noqa: E731
    expected, _ = run_changing(present, lambda i: moving(0), x, sigmas, path, fitted)
    with vaccel.accelerate(pipe, dataclasses.replace(method, full_steps=path)):
        assert close(guided(pipe, moving), expected.latents)


def test_guidance_in_one_batch_that_ends_early():
    """diffusers' own callback cuts the batch to its conditional half: its velocities go on."""
    case, steps, path = load_all()["StableDiffusion3Pipeline"], 10, (0, 1, 2, 5, 9)
    pipe = case.build()
    cut = {"callback_on_step_end": SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)}
    kept = {**cut, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds", "pooled_prompt_embeds"]}
    levels, real, past, count = pipe.scheduler, pipe.transformer.forward, {}, 0

    def forward(**given):
        nonlocal count
        i, count = count, count + 1
        if i in path:
            past[i] = real(**given)[0]
            return (past[i],)
        weights = line(levels.sigmas.double().tolist())
        known = oracle.known_after(list(past), 2)
        return (weighed([past[f][-len(given["hidden_states"]) :] for f in known], weights(i, known), 1),)

    pipe.transformer.forward = forward
    expected = generate(case, pipe, steps, output_type="latent", **kept)
    del pipe.transformer.forward
    with vaccel.accelerate(pipe, vaccel.Forecast(path, steps)) as handle:
        made = generate(case, pipe, steps, output_type="latent", **kept)
        trace = handle.trace
    assert trace.timeline() == "FFFppFpppF"
    assert [s.large for s in trace.steps] == [2, 2, 2, 0, 0, 1, 0, 0, 0, 1]
    assert distance(made[0], expected[0]) < TOLERANCE
    with vaccel.accelerate(pipe, Recording()) as handle:
        generate(case, pipe, steps, output_type="latent", **kept)
        assert handle.trace.delivered is not None, "the sample's latents have one shape throughout"


def by_callables(scale, path, guided, weights):
    """(the oracle's run, its forwards, the same by a ``Denoiser`` whose scale is set anew before every step)."""
    levels = tuple(np.linspace(1, 0, STEPS + 1))
    mixed = np.random.default_rng(0).standard_normal((3, 3)) / 2

    def model(condition):
        return lambda x, i: np.sin(3 * np.einsum("cd,bdhw->bchw", mixed, x) + condition + 2 * levels[i])

    branches = {"cond": model(0.3), "uncond": model(-0.4)}
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 5))
    expected, forwards = run_changing(
        lambda i: branches if guided(i) else {"cond": branches["cond"]}, scale, x, levels, path, weights(levels)
    )

    def plain(x, t, condition):
        return torch.from_numpy(model(condition)(x.numpy(), t))

    def ours(method):
        denoiser, z = vaccel.Denoiser(plain, method=method), torch.from_numpy(x)
        with denoiser.run(STEPS, flow=Flow(levels)) as run:
            for i in range(STEPS):
                denoiser.guidance = scale(i)
                v = run.step(i, i, z, 0.3, -0.4 if guided(i) else None)
                z = z + (levels[i + 1] - levels[i]) * v
        return z, run.trace

    return expected, forwards, ours


@pytest.mark.parametrize("guided", [lambda i: True, lambda i: not 3 <= i < 7], ids=["always", "at times"])
def test_a_scale_that_is_set_anew_before_every_step(guided):
    """Forecasts are by branch, so that it costs nothing; and what is recorded of a step is guided by its own scale."""
    path = (0, 1, 5, 9)
    expected, forwards, ours = by_callables(lambda i: 1.5 + 0.7 * i, path, guided, line)
    made, trace = ours(vaccel.Forecast(path, STEPS))
    assert [s.large for s in trace.steps] == forwards
    assert close(made, expected.latents)
    full, _, ours = by_callables(lambda i: 1.5 + 0.7 * i, range(STEPS), guided, line)
    _, trace = ours(Recording())
    assert close(trace.delivered.velocities, np.stack(full.velocities))


def test_a_scale_that_a_callback_sets_is_the_next_steps():
    """In a pipeline that combines its branches with what is set: both in one batch, by SD 3's."""
    case, steps = load_all()["StableDiffusion3Pipeline"], 6
    pipe = case.build()
    moving, expected = (lambda i: 2.0 + i), []
    hook = pipe.transformer.register_forward_hook(lambda m, a, out: expected.append(out[0].chunk(2)))
    change = {"callback_on_step_end": scales(moving), "guidance_scale": moving(0)}
    generate(case, pipe, steps, **change)
    hook.remove()
    recorded = record(pipe, lambda: generate(case, pipe, steps, **change))
    want = torch.stack([u + moving(i) * (c - u) for i, (u, c) in enumerate(expected)])
    assert distance(recorded.velocities, want) < TOLERANCE


def test_guidance_of_a_u_net_that_ends_early():
    """The trained glyphs: noise is predicted, so that velocities are of the latents too; both branches in one batch."""
    pipe = image_family.load().pipe
    pipe.scheduler = image_family.build_scheduler("ddim")
    steps, path, past = 10, (0, 1, 2, 5, 9), {}
    call = {**image_family.CALL, "num_inference_steps": steps, "output_type": "latent"}
    real, seen = pipe.unet.forward, []

    def made():
        cut = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)
        given = {"callback_on_step_end": cut, "generator": torch.Generator().manual_seed(0)}
        return pipe("letter G serif bold red on grass", **call, **given).images

    def forward(sample, t, **given):
        i, x = len(seen), sample.double().numpy()
        seen.append(i)
        alphas = [float(pipe.scheduler.alphas_cumprod[int(n)]) for n in pipe.scheduler.timesteps]
        places = [(a**0.5, (1 - a) ** 0.5) for a in alphas]
        levels = [*(oracle.flow_sigma(*place) for place in places), 0.0]
        if i in path:
            noise = real(sample, t, **given)[0]
            past[i] = oracle.flow_space(*places[i], x, noise.double().numpy(), "epsilon")[2]
            return (noise,)
        known = oracle.known_after(list(past), 2)
        u = oracle.uncalibrated([past[f][-len(x) :] for f in known], levels, known, i, 0.5)
        alpha, sigma = places[i]
        return (torch.from_numpy(x / (alpha + sigma) + (1 - levels[i]) * u).to(sample.dtype),)  # eps = x0 + u

    pipe.unet.forward = forward
    expected = made()
    del pipe.unet.forward
    with vaccel.accelerate(pipe, vaccel.Forecast(path, steps)) as handle:
        actual = made()
        assert [s.large for s in handle.trace.steps] == [2, 2, 2, 0, 0, 1, 0, 0, 0, 1]
    assert distance(actual, expected) < TOLERANCE
