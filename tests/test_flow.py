"""Samplers' paths as flows: levels, velocities, and steps that are Euler's, for real schedulers."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import oracle_forecast as oracle
import pytest
import tiny
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from test_oracle import dpm, euler
from zoo.base import generate, load_all

import vaccel
from vaccel.integrations.diffusers.schedulers import denoised, flow_of, with_response
from vaccel.planning import flow
from vaccel.planning.flow import Flow, damped

ANGLES = (0.05, 0.4, math.pi / 4, 1.1, 1.5)

FLOWS = {"unipc": tiny.unipc, "euler": euler, "dpm": dpm, "shifted": partial(tiny.unipc, 8.0)}
DIFFUSIONS = {
    "dpm-epsilon": DPMSolverMultistepScheduler,
    "dpm-trailing": partial(DPMSolverMultistepScheduler, timestep_spacing="trailing", use_karras_sigmas=False),
    "cog-ddim": partial(CogVideoXDDIMScheduler, prediction_type="v_prediction"),
    "cog-ddim-shifted": partial(CogVideoXDDIMScheduler, prediction_type="v_prediction", snr_shift_scale=1.0),
    "cog-ddim-zero-snr": partial(
        CogVideoXDDIMScheduler, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ),
    "cog-dpm": partial(CogVideoXDPMScheduler, prediction_type="v_prediction"),
    "ddim-sample": partial(DDIMScheduler, prediction_type="sample", clip_sample=False),
}


def made(make, steps: int = 10):
    """A scheduler whose levels are fp64, and so are its steps of fp64 latents."""
    scheduler = make()
    for name in ("alphas_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    scheduler.set_timesteps(steps)
    return scheduler


def close(a, b, scale: float = 1.0) -> None:
    """As good as fp64 makes two ways of working it out, where terms of up to ``scale`` cancel."""
    a, b = np.asarray(a), np.asarray(b)
    assert np.abs(a - b).max() <= 1e-13 * scale * (1 + np.abs(b).max())


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def velocity(found: Flow, index: int, prediction: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """u as a flow says that it is made of a prediction and x."""
    if found.scales is None:
        return prediction
    of_prediction, of_x = found.scales[index]
    return of_prediction * prediction + of_x * x


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("angle", ANGLES)
def test_scales_and_levels(kind, angle):
    alpha, sigma = math.cos(angle), math.sin(angle)
    x, prediction = noise(2, 50).numpy()
    of_prediction, of_x = flow.scales(kind, alpha, sigma)
    _, _, expected = oracle.flow_space(alpha, sigma, x, prediction, kind)
    np.testing.assert_allclose(of_prediction * prediction + of_x * x, expected, rtol=1e-11, atol=1e-11)
    assert flow.level(alpha, sigma) == pytest.approx(oracle.flow_sigma(alpha, sigma), rel=1e-15)


def test_the_ends_of_the_scales():
    assert flow.level(0.0, 1.0) == 1
    assert flow.level(1.0, 0.0) == 0
    x, prediction = noise(2, 5).numpy()
    for kind, alpha, sigma in [("v_prediction", 0.0, 1.0), ("v_prediction", 1.0, 0.0), ("epsilon", 1.0, 0.0),
                               ("sample", 0.0, 1.0)]:  # fmt: skip
        of_prediction, of_x = flow.scales(kind, alpha, sigma)
        expected = oracle.flow_space(alpha, sigma, x, prediction, kind)[2]
        np.testing.assert_allclose(of_prediction * prediction + of_x * x, expected, atol=1e-12)
    for kind, alpha, sigma, message in [
        ("epsilon", 0.0, 1.0, "where alpha is 0"), ("sample", 1.0, 0.0, "where sigma is 0"),
        ("flow", 0.5, 0.5, "no velocity for predictions of kind 'flow'"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            flow.scales(kind, alpha, sigma)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_matching_is_a_flow_already(name):
    scheduler = made(FLOWS[name])
    found = flow_of(scheduler)
    assert found.scales is None
    assert found.num_steps == len(scheduler.timesteps) == 10
    assert found.levels == tuple(scheduler.sigmas.double().tolist())
    assert found.levels[-1] == 0
    x, v = noise(2, 3, 4)
    for i in range(10):
        x0 = denoised(scheduler, v, x, i)
        s = found.levels[i]
        eps = (x - (1 - s) * x0) / s
        close(velocity(found, i, v, x), eps - x0, 1 / s)
    assert flow_of(scheduler, 4).levels == found.levels[4:], "a run that begins in the middle"
    assert flow_of(scheduler, 4).num_steps == 6


def test_inverted_sigmas_are_shares_of_the_sample():
    """As Mochi's and OmniGen's: velocities point to the sample, and levels are one less the sigmas."""
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(10)
    assert scheduler.sigmas[0] < scheduler.sigmas[-1] == 1, "they rise"
    found = flow_of(scheduler)
    assert all(a > b for a, b in zip(found.levels, found.levels[1:], strict=False))
    assert found.levels[-1] == 0
    widths = [b - a for a, b in zip(found.levels, found.levels[1:], strict=False)]
    np.testing.assert_allclose(with_response(found, scheduler).response[-1], widths, atol=1e-6)
    sample, eps = noise(2, 3, 4)
    for i, t in enumerate(scheduler.timesteps):
        s = found.levels[i]
        x, prediction = (1 - s) * sample + s * eps, sample - eps
        close(velocity(found, i, prediction, x), eps - sample)
        # What the scheduler keeps in fp32 is as good as that.
        np.testing.assert_allclose(denoised(scheduler, prediction, x, i), sample, atol=1e-5)
        moved = scheduler.step(prediction, t, x, return_dict=False)[0]
        expected = x + (found.levels[i + 1] - s) * (eps - sample)
        np.testing.assert_allclose(moved, expected, atol=1e-5)
    assert flow_of(scheduler, 4).levels == found.levels[4:]


class Rising(FlowMatchEulerDiscreteScheduler):
    """Levels that nobody can make sense of."""

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.sigmas = self.sigmas.flip(0).contiguous()


def test_levels_that_do_not_fall_are_unknown(tmp_path):
    pipe = tiny.wan_pipeline(Rising(shift=3.0))
    pipe.scheduler.set_timesteps(20)
    assert flow_of(pipe.scheduler) is None
    plain = tiny.latents(pipe, steps=20)
    for auto in (vaccel.Auto(speedup=2.0, folder=str(tmp_path)), vaccel.Auto(psnr=40, folder=str(tmp_path))):
        with vaccel.accelerate(pipe, auto) as handle:
            assert torch.equal(tiny.latents(pipe, steps=20), plain)
            assert handle.trace.timeline() == "F" * 20
            assert "nothing is known that is safe to skip" in handle.trace.notes[0]
    with vaccel.accelerate(pipe, vaccel.Forecast.prior(8)), pytest.raises(ValueError, match="unknown or do not fall"):
        tiny.latents(pipe, steps=20)


@pytest.mark.parametrize("name", ["MochiPipeline", "OmniGenPipeline"])
def test_pipelines_with_inverted_sigmas(name, tmp_path):
    case = load_all()[name]
    pipe = case.build()
    full = generate(case, pipe, 20)
    with vaccel.accelerate(pipe, vaccel.Auto(speedup=2.0, folder=str(tmp_path))) as handle:
        generate(case, pipe, 20)
        assert "F" in handle.trace.timeline()
        assert "p" in handle.trace.timeline()
    assert all(map(torch.equal, generate(case, pipe, 20), full))


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_diffusion_models_as_flows(name):
    scheduler = made(DIFFUSIONS[name])
    found = flow_of(scheduler)
    assert len(found.scales) == found.num_steps == 10
    x, prediction = noise(2, 3, 4)
    for i, t in enumerate(scheduler.timesteps):
        cumulative = float(scheduler.alphas_cumprod[t])
        alpha, sigma = cumulative**0.5, (1 - cumulative) ** 0.5
        assert found.levels[i] == pytest.approx(oracle.flow_sigma(alpha, sigma), rel=1e-12)
        u = velocity(found, i, prediction, x)
        kind = scheduler.config.prediction_type
        expected = oracle.flow_space(alpha, sigma, x.numpy(), prediction.numpy(), kind)[2]
        close(u, expected, 1 / sigma)
        x0 = denoised(scheduler, prediction, x, i)
        close((x - alpha * x0) / sigma - x0, u, 1 / sigma)
    assert found.levels[-1] == 0
    assert all(a > b for a, b in zip(found.levels, found.levels[1:], strict=False))
    later = flow_of(scheduler, 3)
    assert (later.levels, later.scales) == (found.levels[3:], found.scales[3:])


@pytest.mark.parametrize("name", ["cog-ddim", "cog-ddim-shifted", "cog-ddim-zero-snr", "ddim-sample"])
def test_a_step_of_ddim_is_one_of_euler(name):
    scheduler = made(DIFFUSIONS[name])
    found = flow_of(scheduler)
    alphas = [float(scheduler.alphas_cumprod[t]) ** 0.5 for t in scheduler.timesteps] + [1.0]
    x = noise(1, 2, 4, 3, 3)
    for i, t in enumerate(scheduler.timesteps):
        prediction = noise(1, 2, 4, 3, 3, seed=i)
        stepped = scheduler.step(prediction, t, x, eta=0.0, return_dict=False)[0]
        a, b = ((alpha, (1 - alpha**2) ** 0.5) for alpha in alphas[i : i + 2])
        flowing = x / sum(a) + (found.levels[i + 1] - found.levels[i]) * velocity(found, i, prediction, x)
        close(flowing * sum(b), stepped, 1 / a[1])
        assert (x - stepped).abs().max() > 1e-3, "a step that goes nowhere would say nothing"
        x = stepped


def test_schedulers_that_say_nothing():
    silent = SimpleNamespace(config={}, timesteps=torch.tensor([2.0, 1.0]))
    assert flow_of(silent) is None
    silent.config = {"prediction_type": "epsilon"}
    assert flow_of(silent) is None
    unknown = made(DIFFUSIONS["cog-ddim"])
    unknown.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="no velocity for predictions of kind 'score'"):
        flow_of(unknown)
    noisy = made(partial(DDIMScheduler, rescale_betas_zero_snr=True, timestep_spacing="trailing"))
    with pytest.raises(ValueError, match="where alpha is 0"):
        flow_of(noisy)


@pytest.mark.parametrize("damping", [0.0, 0.5, 1.0])
def test_damped(damping):
    levels = (1.0, 0.9, 0.75, 0.6, 0.5, 0.2, 0.0)
    v = noise(6, 2, 3).numpy()
    for known in [(2, 0), (1, 0), (3, 2)]:
        for step in range(known[0] + 1, 6):
            weights = damped(levels, known, step, damping)
            expected = oracle.uncalibrated([v[f] for f in known], levels, known, step, damping)
            np.testing.assert_allclose(sum(w * v[f] for w, f in zip(weights, known, strict=True)), expected, rtol=1e-13)
    assert damped(levels, (2,), 4, damping) == (1.0,)
    assert damped((1.0, 0.5, 0.5, 0.2), (2, 1), 3, damping) == (1.0,), "no line through one level"


def test_levels_of_a_loop_that_says_nothing():
    assert Flow.even(4) == Flow((1.0, 0.75, 0.5, 0.25, 0.0))
    assert Flow.even(4).num_steps == 4
