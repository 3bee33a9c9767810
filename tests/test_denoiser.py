"""The engine in a hand-written loop equals the engine in a pipeline, and says what it cannot do."""

from __future__ import annotations

import pytest
import tiny
import torch

import vaccel

STEPS = 20


def sample(denoiser: vaccel.Denoiser, steps: int = STEPS, guided: bool = True):
    """A plain Euler loop over flow times; returns latents and trace."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 3, 4, 4, generator=generator)
    cond, uncond = torch.randn(2, 2, 8, 32, generator=generator)
    times = torch.linspace(1, 0, steps + 1)
    with denoiser.run(num_steps=steps) as run:
        for i in range(steps):
            v = run.step(i, times[i] * 1000, x, cond, uncond if guided else None)
            x = x + (times[i + 1] - times[i]) * v
    return x, run.trace


def callables():
    large, small = tiny.wan_transformer(), tiny.wan_small()

    def call(model):
        def forward(x, t, condition):
            return model(x, t.expand(len(x)), condition, return_dict=False)[0]

        return forward

    return (large, small), (call(large), call(small))


@pytest.mark.parametrize("guided", [True, False])
def test_callables_and_transformers_agree(guided):
    transformers, functions = callables()
    for method in (
        vaccel.DirectionMagnitude(threshold=0.004),
        vaccel.SRDiffusion(threshold=0.05),
        vaccel.Schedule.from_timeline("FFrrF" * 4, reuse="residual"),
    ):
        x, trace = sample(vaccel.Denoiser(*transformers, method=method, guidance=4.0), guided=guided)
        y, other = sample(vaccel.Denoiser(*functions, method=method, guidance=4.0), guided=guided)
        assert trace.timeline() == other.timeline()
        assert torch.equal(x, y)
        assert len(set(trace.timeline())) > 1
        assert trace.finished


def test_the_full_method_is_the_plain_loop():
    _, (large, _) = callables()
    method = vaccel.Schedule(range(STEPS), num_steps=STEPS, reuse="residual")
    x, trace = sample(vaccel.Denoiser(large, method=method, guidance=4.0))
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(2, 16, 3, 4, 4, generator=generator)
    cond, uncond = torch.randn(2, 2, 8, 32, generator=generator)
    times = torch.linspace(1, 0, STEPS + 1)
    with torch.no_grad():
        for i in range(STEPS):
            c, u = large(y, times[i] * 1000, cond), large(y, times[i] * 1000, uncond)
            y = y + (times[i + 1] - times[i]) * (u + 4.0 * (c - u))
    assert torch.equal(x, y)
    assert trace.calls == {"large": 2 * STEPS, "small": 0}


def test_runs_are_fresh():
    transformers, _ = callables()
    denoiser = vaccel.Denoiser(*transformers, method=vaccel.DirectionMagnitude(0.004), guidance=4.0)
    first, _ = sample(denoiser)
    with denoiser.run(num_steps=STEPS) as run:
        run.step(0, torch.tensor(900.0), torch.randn(2, 16, 3, 4, 4), torch.randn(2, 8, 32))
    second, _ = sample(denoiser)
    assert torch.equal(first, second)


def test_what_it_refuses():
    _, (large, small) = callables()
    polynomial = (1.0, 0.0)
    with pytest.raises(ValueError, match="needs the small model"):
        vaccel.Denoiser(large, method=vaccel.DirectionMagnitude())
    with pytest.raises(ValueError, match="no plain callable shows"):
        vaccel.Denoiser(large, method=vaccel.TeaCache(threshold=0.1, coefficients=polynomial))
    with pytest.raises(ValueError, match="pass denoise"):
        vaccel.Denoiser(large, small, method=vaccel.SRDiffusion(signal="denoised"))
    with pytest.raises(ValueError, match="must be a callable"):
        vaccel.Denoiser(3, method=vaccel.Schedule([0], num_steps=2, reuse="residual"))
    with pytest.raises(ValueError, match="both be callables"):
        vaccel.Denoiser(large, tiny.wan_small(), method=vaccel.DirectionMagnitude())
    run = vaccel.Denoiser(large, method=vaccel.Schedule([0], num_steps=2, reuse="residual")).run(num_steps=2)
    with pytest.raises(ValueError, match="in order"):
        run.step(1, torch.tensor(1.0), torch.randn(1, 16, 3, 4, 4), None)


def test_runs_that_overlap_have_nothing_in_common():
    transformers, _ = callables()
    for method in (vaccel.Schedule.from_timeline("FFrrF" * 4), vaccel.Forecast((0, 1, 5, 10, 19), STEPS)):
        denoiser = vaccel.Denoiser(transformers[0], method=method, guidance=4.0)
        alone, _ = sample(denoiser)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 16, 3, 4, 4, generator=generator)
        cond, uncond = torch.randn(2, 2, 8, 32, generator=generator)
        times = torch.linspace(1, 0, STEPS + 1)
        with denoiser.run(STEPS) as run, denoiser.run(STEPS) as other:
            y = -x
            for i in range(STEPS):
                x = x + (times[i + 1] - times[i]) * run.step(i, times[i] * 1000, x, cond, uncond)
                y = y + (times[i + 1] - times[i]) * other.step(i, times[i] * 1000, y, uncond, cond)
        assert torch.equal(x, alone)
        with pytest.raises(ValueError, match="this run is over"):
            run.step(0, 0.0, x, cond)


def test_gradients_are_refused():
    _, (large, _) = callables()
    denoiser = vaccel.Denoiser(large, method=vaccel.Schedule([0], num_steps=4, reuse="residual"))
    x = torch.zeros(1, 16, 3, 4, 4, requires_grad=True)
    with denoiser.run(4) as run, pytest.raises(ValueError, match="no gradients"):
        run.step(0, torch.tensor(900.0), x, torch.zeros(1, 8, 32))
