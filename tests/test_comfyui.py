"""ComfyUI's model patch: whose run, which call; on a double of ComfyUI and a tiny network."""

from __future__ import annotations

import comfyui_double as comfy
import comfyui_levels as levels
import pytest
import torch
from comfyui_tiny import HALF, forwards, last, model, noise, prompts, run

from vaccel.integrations.comfyui import Choice, journal_of, patched
from vaccel.integrations.comfyui.wrappers import KEY

pytestmark = comfy.needs_k_diffusion


@pytest.mark.parametrize("method", ["Auto", "Forecast", "TeaCache", "Schedule"])
@pytest.mark.parametrize("sampling", [levels.FlowSampling, levels.EpsSampling, levels.VSampling, levels.EdmSampling])
def test_every_method_on_every_kind_of_prediction(method, sampling):
    plain = model(sampling())
    fast = patched(plain, Choice(method, "computed calls", 7))
    full, made = run(plain), run(fast)
    record = last(fast)
    assert (record.finished, record.timeline.count("F"), len(record.timeline)) == (True, 7, 14), record.report()
    assert record.computed == 14
    assert record.forwards == 28
    assert forwards(fast) == 28 + 14
    assert torch.isfinite(made).all()
    assert not torch.equal(made, full)


def test_easycache_decides_while_it_runs():
    fast = patched(model(), Choice("EasyCache", "threshold", 0.2))
    run(fast)
    assert "r" in last(fast).timeline
    assert last(fast).timeline[0] == "F"


def test_with_nothing_to_skip_it_is_the_model_bit_for_bit():
    plain = model()
    for choice in (
        Choice("Forecast", "speed", 1.0),
        Choice("EasyCache", "threshold", 0.0),
        Choice("Auto", "psnr", 300.0),
    ):
        fast = patched(plain, choice)
        with pytest.warns(UserWarning, match="too small") if choice.method == "EasyCache" else _nothing():
            assert torch.equal(run(fast), run(plain))
        assert set(last(fast).timeline) == {"F"}


class _nothing:  # noqa: N801
    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return False


@pytest.mark.parametrize(("sampler", "calls"), [
    ("euler", 12), ("heun", 23), ("dpm_2", 23), ("lms", 12), ("dpmpp_2m", 12), ("euler_ancestral", 12),
    ("dpmpp_2s_ancestral", 23), ("dpmpp_sde", 23), ("dpmpp_2m_sde", 12), ("dpmpp_3m_sde", 12), ("dpm_2_ancestral", 23),
])  # fmt: skip
def test_a_call_is_known_by_its_sigma(sampler, calls):
    """Samplers that ask twice a step, between the listed levels, or add noise: so many calls, half of them computed."""
    plain = model(levels.EpsSampling())
    fast = patched(plain, HALF)
    full, made = run(plain, sampler, 12), run(fast, sampler, 12)
    record = last(fast)
    assert (len(record.timeline), record.computed_calls) == (calls, round(calls / 2)), record.report()
    assert record.finished
    assert not any("computed in full" in note for note in record.notes)
    added = "ancestral" in sampler or "sde" in sampler
    assert any("adds noise" in note for note in record.notes) == added
    assert (record.expected is None) == added
    assert (made - full).square().mean() < 0.05 * full.square().mean()


def test_the_random_stream_is_the_users():
    plain = model(levels.EpsSampling())
    fast = patched(plain, Choice("Forecast", "speed", 1.0))
    for sampler in ("euler_ancestral", "dpmpp_2m_sde"):
        assert torch.equal(run(fast, sampler), run(plain, sampler))
    run(plain)
    expected = torch.rand(3)
    run(fast)
    assert torch.equal(torch.rand(3), expected)


def test_no_gpus_random_stream_is_touched(monkeypatch):
    """``torch.manual_seed`` seeds those of all GPUs, and ancestral samplers draw their noise there."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    plain = model(levels.EpsSampling())
    fast = patched(plain, Choice("Forecast", "speed", 2.0))
    run(plain, "euler_ancestral")
    own = list(seeded)  # the host seeds them before it samples
    run(fast, "euler_ancestral")
    assert "cannot be tried" not in journal_of(fast).last.report()
    assert seeded == [*own, *own]


def test_a_sampler_that_chooses_its_own_steps_is_computed_in_full():
    plain = model(levels.EpsSampling())

    def adaptive(model, x, sigmas, extra_args=None, callback=None, disable=None):
        first, end = sigmas[0], sigmas[-2]
        return levels.k_diffusion_sampling().sample_dpm_adaptive(model, x, end, first, extra_args, None, True)

    positive, negative = prompts()
    sigmas = levels.simple_sigmas(plain.model.model_sampling, 8)
    made = []
    for patcher in (plain, fast := patched(plain, HALF)):
        made.append(comfy.sample(patcher, noise(), positive, negative, 3.0, comfy.KSAMPLER(adaptive), sigmas))
    assert torch.equal(*made)
    assert sum("computed in full" in note for note in last(fast).notes) == 1
    assert any("was not foreseen" in note for note in last(fast).notes)


def test_it_begins_in_the_middle_and_ends_there():
    """Image to image with denoise below 1, and a sampling in two parts, noise left over."""
    plain = model()
    sigmas = levels.simple_sigmas(plain.model.model_sampling, 24)
    fast = patched(plain, HALF)
    picture = noise(seed=3)
    for part in (sigmas[-13:], sigmas[:13]):
        full, made = (run(p, sigmas=part, latent_image=picture) for p in (plain, fast))
        assert len(last(fast).timeline) == 12
        assert last(fast).computed_calls == 6
        assert (made - full).square().mean() < 0.01 * full.square().mean()


def test_inpainting():
    plain, fast, mask = model(), None, torch.zeros(1, 1, 6, 6)
    mask[..., :3] = 1
    fast = patched(plain, HALF)
    full, made = (run(p, latent_image=noise(seed=3), denoise_mask=mask) for p in (plain, fast))
    assert last(fast).computed_calls == 7
    assert (made - full).square().mean() < 0.02 * full.square().mean()


def test_where_it_may_skip():
    fast = patched(model(), Choice("Forecast", "speed", 2.0, start_percent=0.41, end_percent=0.91))
    run(fast, steps=20)
    sampling = fast.model.model_sampling
    allowed = [sampling.percent_to_sigma(p) for p in (0.41, 0.91)]
    for letter, sigma in zip(last(fast).timeline, levels.simple_sigmas(sampling, 20), strict=False):
        assert letter == "F" or allowed[1] < sigma <= allowed[0]
    assert "p" in last(fast).timeline


def test_an_interrupted_run_closes_and_the_next_is_as_if_it_had_not_been():
    plain = model()
    fast = patched(plain, HALF)
    first = run(fast)
    network = plain.model.diffusion_model
    before = fast.model_options
    network.fails_at = len(network.calls) + 3
    with pytest.raises(KeyboardInterrupt):
        run(fast)
    assert not last(fast).finished
    assert len(last(fast).timeline) < 14
    assert fast.model_options is before
    assert KEY not in before["transformer_options"]
    assert torch.equal(run(fast), first)
    assert last(fast).finished


def test_options_are_given_back_and_clones_are_free():
    plain = model()
    plain.model_options["transformer_options"]["patches"] = {"attn1": [1]}
    fast = patched(plain, HALF)
    assert plain.wrappers == {}
    assert KEY not in fast.model_options["transformer_options"]
    assert journal_of(plain) is None
    assert last(fast) is None
    later = fast.clone()  # a LoRA loader behind ours
    a, b = run(later), run(fast)
    assert torch.equal(a, b)
    assert len(list(journal_of(fast))) == 2
    assert journal_of(later) is journal_of(fast)
    assert fast.model_options == {"transformer_options": {"patches": {"attn1": [1]}}}
    again = patched(fast, Choice("Forecast", "speed", 1.0))
    assert torch.equal(run(again), run(plain))  # in the place of the first, which stays as it was
    assert len(again.get_wrappers(comfy.OUTER_SAMPLE, KEY)) == 1
    assert len(fast.get_wrappers(comfy.OUTER_SAMPLE, KEY)) == 1
    assert len(list(journal_of(fast))) == 2


def test_a_call_outside_any_sampling_is_the_plain_model():
    fast = patched(model(), HALF)
    run(fast)
    options = comfy.merged({"uuids": ["a"], "sigmas": torch.ones(1)}, {"wrappers": fast.wrappers})
    context, t = torch.randn(1, 3, 4), torch.full((1,), 500.0)
    bare = {"uuids": ["a"], "sigmas": torch.ones(1)}
    with torch.no_grad():
        network = fast.model.diffusion_model
        made, plain = (network(noise(), t, context, transformer_options=each) for each in (options, bare))
    assert torch.equal(made, plain)


def test_two_samplings_one_within_the_other():
    """A preview that samples with the same patched model in the middle of a run."""
    plain = model()
    fast, inner = patched(plain, HALF), []
    alone, other = run(fast), run(fast, noise=noise(seed=9))

    def callback(state):
        if state["i"] == 5:
            inner.append(run(fast, noise=noise(seed=9)))

    assert torch.equal(run(fast, callback=callback), alone)
    assert torch.equal(inner[0], other)


def test_comfyuis_own_cache_beside_it_is_said():
    fast = patched(model(), HALF)
    fast.model_options["transformer_options"]["easycache"] = object()
    run(fast)
    assert any("one of both" in note for note in last(fast).notes)
    assert set(last(fast).timeline) == {"F"}


def test_a_network_that_is_compiled_with_its_wrappers_is_computed_in_full():
    plain = model()
    fast = patched(plain, HALF)
    expected = run(plain)
    compiled = torch.compile(plain.model.diffusion_model, backend="eager")

    def swapped(executor, *args, **kwargs):
        plain.model.diffusion_model, before = compiled, plain.model.diffusion_model
        try:
            return executor(*args, **kwargs)
        finally:
            plain.model.diffusion_model = before

    fast.add_wrapper_with_key(comfy.APPLY_MODEL, "compile", swapped)
    torch.testing.assert_close(run(fast, steps=14), expected, rtol=1e-4, atol=1e-5)


def test_a_noise_source_with_a_state_is_left_alone():
    """A sampler's own noise is drawn by the run and by nothing else; then nothing is known of its calls in advance."""
    plain = model(levels.EpsSampling())
    fast = patched(plain, HALF)
    positive, negative = prompts()
    sigmas = levels.simple_sigmas(plain.model.model_sampling, 12)
    drawn = []

    def source(sigma, sigma_next):
        drawn.append(float(sigma))
        return torch.zeros_like(noise())

    sampler = comfy.ksampler("euler_ancestral", noise_sampler=source)
    made = comfy.sample(fast, noise(), positive, negative, 3.0, sampler, sigmas)
    assert len(drawn) == 11
    assert torch.isfinite(made).all()
    assert last(fast).computed_calls == 6
    assert last(fast).expected is None
    assert any("cannot be tried" in note for note in last(fast).notes)
