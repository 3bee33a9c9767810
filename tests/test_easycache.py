"""EasyCache against its plain loop, on callables and in pipelines, and its settings."""

from __future__ import annotations

import contextlib
import json

import oracle_easycache
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.utils._python_dispatch import TorchDispatchMode

import vaccel
from vaccel.methods.easycache import _Policy

STEPS = 24
#: Decisions nearer to the threshold than this, relative to it, could be rounding's.
MARGIN = 1e-4


def task(samples: int, guided: bool):
    """A model whose output turns slowly, an Euler loop, and noise; all in fp64 beside the tiny transformer's fp32."""
    large = tiny.wan_transformer()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 16, 3, 4, 4, generator=generator)
    conditions = torch.randn(2, samples, 8, 32, generator=generator)
    times = torch.linspace(1, 0, STEPS + 1)

    @torch.no_grad()
    def model(x, t, condition):
        return large(x, torch.as_tensor(t).expand(len(x)), condition, return_dict=False)[0]

    def solver_step(v, i, x):
        return x + (times[i + 1] - times[i]) * v

    return model, solver_step, x, times[:-1] * 1000, conditions[0], conditions[1] if guided else None


def ours(method, model, solver_step, x, timesteps, cond, uncond, guidance):
    denoiser = vaccel.Denoiser(model, method=method, guidance=guidance)
    with denoiser.run(num_steps=STEPS) as run:
        for i, t in enumerate(timesteps):
            x = solver_step(run.step(i, t, x, cond, uncond), i, x)
    return x, run.trace


@pytest.mark.parametrize("settings", [{}, oracle_easycache.RELEASE, {"rate_from": "computed"}], ids=str)
@pytest.mark.parametrize(
    ("samples", "guided", "threshold", "warmup"), [(1, True, 0.2, 4), (2, True, 0.35, 0), (2, False, 0.6, 6)]
)
def test_the_plain_loop(settings, samples, guided, threshold, warmup):
    settings = {"rate_from": "previous", "relative_to": "previous", **settings}
    given = task(samples, guided)
    *loop, cond, uncond = given
    expected, letters, metrics = oracle_easycache.easycache(
        *loop, cond=cond, uncond=uncond, guidance=4.0, threshold=threshold, warmup=warmup, **settings
    )
    worst = [max(e) for e in metrics["error"] if e is not None]
    assert min(abs(e / threshold - 1) for e in worst) > MARGIN, "a decision that rounding could make"
    assert {"F", "r"} == set(letters)
    found, trace = ours(vaccel.EasyCache(threshold, warmup, **settings), *given, 4.0)
    assert trace.timeline() == letters
    for step, error in zip(trace.steps, metrics["error"], strict=True):
        assert ("error" in step.metrics) == (error is not None)
        if error is not None:
            assert step.metrics["error"] == pytest.approx(error, rel=1e-4)
    assert torch.linalg.vector_norm(found - expected) < 1e-5 * torch.linalg.vector_norm(expected)
    assert trace.calls["large"] == letters.count("F") * (2 if guided else 1)


@pytest.mark.parametrize("name", ["wan", "cogvideox", "qwen-image"])
@pytest.mark.filterwarnings("ignore:vaccel")
def test_in_a_pipeline(name):
    pipe, _ = tiny.family(name)
    plain = tiny.latents(pipe, steps=STEPS)
    with vaccel.accelerate(pipe, vaccel.EasyCache(0.0, 3)) as handle:
        assert torch.equal(tiny.latents(pipe, steps=STEPS), plain)
        assert set(handle.trace.timeline()) == {"F"}
    with vaccel.accelerate(pipe, vaccel.EasyCache(1e9, 3)) as handle:
        tiny.latents(pipe, steps=STEPS)
        assert handle.trace.timeline() == "FFF" + "r" * (STEPS - 4) + "F"


def test_a_pipeline_is_the_plain_loop():
    pipe = tiny.wan_pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    seen = []

    def keep(_, i, t, tensors):
        seen.append(tensors["latents"].clone())
        return {}

    method = vaccel.EasyCache(0.3, 4)
    with vaccel.accelerate(pipe, method) as handle:
        found = tiny.latents(pipe, steps=STEPS, guidance=1.0, callback_on_step_end=keep)
    with torch.no_grad():
        text = pipe.encode_prompt("a red cat runs", do_classifier_free_guidance=False, max_sequence_length=8)[0]
    sigmas, timesteps = pipe.scheduler.sigmas, pipe.scheduler.timesteps
    start = torch.randn(seen[0].shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def model(x, t, condition):
        return pipe.transformer(x, t.expand(len(x)), condition, return_dict=False)[0]

    expected, letters, _ = oracle_easycache.easycache(
        model, lambda v, i, x: x + (sigmas[i + 1] - sigmas[i]) * v, start, timesteps, cond=text, threshold=0.3,
        warmup=4, **oracle_easycache.RELEASE,
    )  # fmt: skip
    assert handle.trace.timeline() == letters
    assert "r" in letters
    assert torch.linalg.vector_norm(found - expected) < 1e-5 * torch.linalg.vector_norm(expected)


def test_a_skipped_step_makes_no_tensor_but_its_output(wan, monkeypatch):
    """What is measured at every step is written into buffers: at latents' sizes the allocator is what it would cost."""
    made = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if not op._schema.is_mutable:
                made.append(op.overloadpacket.__name__)
            return op(*args, **(kwargs or {}))

    original = _Policy.decide

    def decide(self, step):
        skipping = self.error is not None
        with Watching() if skipping else contextlib.nullcontext():
            return original(self, step)

    monkeypatch.setattr(_Policy, "decide", decide)
    with vaccel.accelerate(wan, vaccel.EasyCache(threshold=1e9, warmup=3)) as handle:
        tiny.latents(wan, steps=9)
    assert handle.trace.timeline() == "FFFrrrrrF"
    assert set(made) <= {"promote_types"}, made


def test_settings():
    method = vaccel.EasyCache(0.1, 2, rate_from="previous")
    assert vaccel.method_from_json(json.loads(json.dumps(method.to_json()))) == method
    assert vaccel.EasyCache.preset("hunyuanvideo") == vaccel.EasyCache(0.025, 5)
    for settings, match in (
        ({"threshold": -1.0}, "threshold must be"),
        ({"warmup": 1.5}, "warmup must be"),
        ({"relative_to": "first"}, "relative_to must be 'computed' or 'previous'"),
    ):
        with pytest.raises(ValueError, match=match):
            vaccel.EasyCache(**settings)
    with pytest.raises(ValueError, match="no EasyCache preset"):
        vaccel.EasyCache.preset("latte")
