"""Calibrations of loops by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vaccel
from vaccel.calibrate import record
from vaccel.planning import artifacts
from vaccel.planning.calibration import calibration
from vaccel.planning.flow import Flow

SHAPE = (1, 3, 4, 4)


def model(x, t, cond):
    """A flow whose velocity turns with the level, each channel at its own pace."""
    pace = torch.arange(1, 4).view(1, 3, 1, 1)
    return cond * torch.cos(pace * float(t)) + 0.1 * x.flip(1)


def loop(denoiser, steps=12, seed=0, stop=None):
    """(the finished latents, every step's velocity) of Euler's method on levels that are not even."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    cond = torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + seed))
    levels, velocities = (*np.linspace(1, 0.05, steps).tolist(), 0.0), []
    with denoiser.run(steps, flow=Flow(levels)) as run:
        for i in range(steps):
            if i == stop:
                raise RuntimeError("enough")
            velocities.append(run.step(i, levels[i], x, cond, -cond))
            x = x + (levels[i + 1] - levels[i]) * velocities[-1]
    return x, torch.stack(velocities).double(), run.trace


def test_runs_in_full_become_samples(tmp_path):
    path, method = tmp_path / "forecast.json", vaccel.Forecast.prior(5)
    denoiser = vaccel.Denoiser(model, method=method, guidance=3.0)
    plain = vaccel.Denoiser(model, method=vaccel.Schedule(range(12), num_steps=12), guidance=3.0)
    made = []
    with record(denoiser, path):
        for seed in (0, 1):
            x, velocities, trace = loop(denoiser, seed=seed)
            assert torch.equal(x, loop(plain, seed=seed)[0]), "the loop is as it was"
            assert trace.timeline() == "F" * 12
            made.append(velocities.flatten(3))  # [T, B, C, elements]
    assert denoiser.method is method
    known = calibration(path)
    expected = sum(np.einsum("tbce,sbce->cts", v, v) for v in (m.numpy() for m in made)) / 2
    np.testing.assert_allclose(known.gram.products[0], expected, rtol=1e-5, atol=1e-5)
    denoiser.method = vaccel.Forecast.load(path, budget=6)
    for seed, steps in ((7, 12), (7, 20)):  # and read at other levels
        full = loop(vaccel.Denoiser(model, method=vaccel.Schedule(range(steps), num_steps=steps), guidance=3.0),
                    steps=steps, seed=seed)[0]  # fmt: skip
        forecast, _, trace = loop(denoiser, steps=steps, seed=seed)
        assert trace.timeline().count("F") == 6
        denoiser.method, kept = vaccel.Forecast.prior(6), denoiser.method
        guessed = loop(denoiser, steps=steps, seed=seed)[0]
        denoiser.method = kept
        assert (forecast - full).norm() < (guessed - full).norm(), "better than what is known of other models"


def test_what_is_no_sample_and_what_does_not_fit(tmp_path):
    path = tmp_path / "forecast.json"
    denoiser = vaccel.Denoiser(model, method=vaccel.Forecast.prior(5))
    with record(denoiser, path), pytest.raises(RuntimeError, match="enough"):
        loop(denoiser, stop=4)
    assert not path.exists()
    with record(denoiser, path):
        loop(denoiser)
        with pytest.raises(ValueError, match="has runs of 12 steps, this one has 9"):
            loop(denoiser, steps=9)
    broken = vaccel.Denoiser(lambda x, t, cond: x * float("nan"), method=vaccel.Forecast.prior(5))
    with record(broken, tmp_path / "broken.json"), pytest.raises(ValueError, match="not finite"):
        loop(broken)
    assert len(artifacts.read(path, "forecast")["samples"]) == 1
    loop(denoiser)
    assert len(artifacts.read(path, "forecast")["samples"]) == 1, "out of the context nothing is recorded"
