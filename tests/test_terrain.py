"""The benchmark on a pretrained denoiser: its coordinates, and a loop by Euler that says what its steps add."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vaccel
from vaccel.planning.flow import Flow

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import measure_terrain as bench

HERE = all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "terrain_diffusion"))


def test_what_a_step_of_euler_adds_stays():
    flow = Flow.euler([1.0, 0.7, 0.2, 0.0])
    velocities, x, entered = np.random.default_rng(0).normal(size=(3, 5)), np.zeros(5), []
    for i, v in enumerate(velocities):
        entered.append(x)
        x = x + (flow.levels[i + 1] - flow.levels[i]) * v
    np.testing.assert_allclose(np.array(flow.response) @ velocities, [*entered, x], atol=1e-15)
    for levels in ([1.0], [0.5, 0.7, 0.0], [1.0, 1.0, 0.0]):
        with pytest.raises(ValueError, match="each below the one before it"):
            Flow.euler(levels)


def test_the_velocity_is_noise_minus_data():
    rng = np.random.default_rng(1)
    clean, noise, sigma = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), 3.0
    np.testing.assert_allclose(bench.velocity(clean + sigma * noise, clean, sigma), noise - clean)
    s = sigma / (1 + sigma)
    np.testing.assert_allclose((clean + sigma * noise) / (1 + sigma), (1 - s) * clean + s * noise)


def test_levels_and_steps():
    flow = bench.karras(50)
    sigmas = np.array(flow.levels[:-1]) / (1 - np.array(flow.levels[:-1]))
    assert sigmas[[0, -1]] == pytest.approx([80, 0.002])
    np.testing.assert_allclose(np.diff(sigmas ** (1 / 7), 2), 0, atol=1e-10)
    for budget in (2, 9, 22, 50):
        steps = bench.even_in_level(flow.levels, budget)
        assert len(set(steps)) == budget
        assert (steps[0], steps[-1]) == (0, 49)
        assert list(steps) == sorted(steps)


def test_an_own_loop_is_corrected_where_it_says_what_its_steps_add(tmp_path):
    """A calibrated run of a loop by Euler follows the full one closer with corrections than without."""
    flow, path = Flow.euler(np.linspace(1, 0, 21)), tmp_path / "f.json"
    field = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(3))

    def model(x, s, condition):
        return torch.tanh(2 * x * (1 - s) + field) + 0.3 * torch.sin(6 * s * field)

    def made(denoiser, seed):
        x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
        with denoiser.run(20, flow=flow) as run:
            for i in range(20):
                x = x + (flow.levels[i + 1] - flow.levels[i]) * run.step(i, flow.levels[i], x, None)
        return x

    denoiser = vaccel.Denoiser(model, method=vaccel.Forecast.prior(20))
    with vaccel.calibrate.record(denoiser, path):
        full = [made(denoiser, seed) for seed in range(4)]
    error = {}
    for correct in (True, False):
        denoiser.method = vaccel.Forecast.load(path, 7, correct=correct)
        error[correct] = sum(float((made(denoiser, k) - x).square().mean()) for k, x in enumerate(full))
    assert error[True] < 0.5 * error[False]


@pytest.mark.skipif(not HERE, reason="onnxruntime and adaptive-terrain-diffusion are not installed")
def test_the_pretrained_model_denoises():
    """From pure noise in one step, which it was distilled for; of little noise it keeps half."""
    flow = Flow.euler([bench.HIGH / (1 + bench.HIGH), 0.0])
    denoiser = vaccel.Denoiser(bench.Terrain(1), method=vaccel.Schedule([0], num_steps=1, reuse="output"))
    heights = bench.generate(denoiser, flow, 0, 50)
    assert heights.shape == (1, 1, bench.SIZE, bench.SIZE)
    rough = (heights[..., 1:] - heights[..., :-1]).square().mean()
    assert float(rough) < 0.05 * float(heights.var()), "terrain is smooth, noise is not"
