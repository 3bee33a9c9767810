"""ComfyUI's model patch on the trained families: how near it stays to the full run, and to ComfyUI's own caches."""

from __future__ import annotations

import comfyui_double as comfy
import comfyui_families
import comfyui_levels as levels
import pytest
import torch
from oracle_comfyui_caches import tuned

from vaccel.integrations.comfyui import Choice, journal_of, patched

pytestmark = comfy.needs_k_diffusion
STEPS = 20
#: dB at half of 20 calls, far below what was measured (docs/comfyui.md has that).
FLOORS = {"shapes": 36.0, "glyphs": 42.0}


@pytest.fixture(scope="module", params=["glyphs", "shapes"])
def family(request):
    return comfyui_families.load(request.param)


@pytest.fixture(scope="module")
def full(family):
    return sampled(family, family.patcher)


def sampled(family, patcher, sampler="euler", steps=STEPS, **given):
    sigmas = levels.simple_sigmas(family.sampling, steps)
    return family.sample(patcher, family.captions[0], sampler, sigmas, seed=0, **given)


def test_half_the_calls_and_ahead_of_comfyuis_own(family, full):
    psnr = {}
    for method in ("Forecast", "Auto"):
        fast = patched(family.patcher, Choice(method, "speed", 2.0))
        psnr[method] = family.psnr(sampled(family, fast), full)
        assert journal_of(fast).last.computed_calls == STEPS // 2
        assert psnr[method] > FLOORS[family.name]
    for lazy in (False, True):
        cache, made = tuned(family.patcher, STEPS // 2, lambda p: sampled(family, p), lazy=lazy)
        assert STEPS // 2 <= cache.timeline.count("F") <= STEPS // 2 + 2
        assert family.psnr(made, full) < min(psnr.values()) - 2, cache.timeline


@pytest.mark.parametrize(("sampler", "floor"), [
    ("heun", 30.0), ("dpmpp_2m", 36.0), ("euler_ancestral", 22.0), ("dpmpp_2s_ancestral", 15.0)
])  # fmt: skip
def test_other_samplers(sampler, floor):
    family = comfyui_families.load("glyphs")
    steps = STEPS if sampler in ("dpmpp_2m", "euler_ancestral") else 12
    fast = patched(family.patcher, Choice("Forecast", "speed", 2.0))
    made, whole = (sampled(family, p, sampler, steps) for p in (fast, family.patcher))
    assert journal_of(fast).last.computed < 0.55 * journal_of(fast).last.forwards
    assert family.psnr(made, whole) > floor


def test_a_batch_without_guidance(family):
    fast, noise = patched(family.patcher, Choice("Forecast", "speed", 2.0)), family.noise(0, batch=2)
    made, whole = (sampled(family, p, steps=14, cfg=1.0, noise=noise) for p in (fast, family.patcher))
    assert len(made) == 2
    assert family.psnr(made, whole) > 30
    assert torch.isfinite(made).all()
