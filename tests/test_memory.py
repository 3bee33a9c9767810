"""The bytes a method will hold are known in advance, and are what it then holds."""

from __future__ import annotations

import pytest
import tiny
import torch

import vaccel


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_the_plan_is_what_is_allocated(name, guidance, skipping_methods):
    pipe, small = tiny.family(name)
    call = tiny.COG_CALL if name == "cogvideox" else tiny.WAN_CALL
    size = {k: call[k] for k in ("height", "width", "num_frames")}
    methods = [
        *skipping_methods,
        vaccel.SRDiffusion(threshold=0.05, signal="latents"),
        vaccel.SRDiffusion(threshold=0.05, signal="denoised"),
        vaccel.DirectionMagnitude(magnitude="projection"),
    ]
    for method in methods:
        with vaccel.accelerate(pipe, method, small=small if method.needs_small else None) as handle:
            plan = handle.memory_plan(**size, guidance=guidance > 1)
            assert handle.nbytes == 0
            tiny.latents(pipe, steps=20, guidance=guidance)
            assert handle.nbytes == plan["total"] == sum(plan.values()) - plan["total"], method


def test_at_480p_on_the_meta_device():
    """Wan2.1-14B's own numbers: a residual of the blocks a branch, 32,760 tokens of 5,120 channels in bf16."""
    with torch.device("meta"):
        model = tiny.WanTransformer3DModel(num_layers=2).to(torch.bfloat16)
    pipe = tiny.wan_pipeline(transformer=model)
    size = {"height": 480, "width": 832, "num_frames": 81}
    with vaccel.accelerate(pipe, vaccel.Schedule([0], num_steps=50)) as handle:
        assert handle.memory_plan(**size, guidance=True) == {
            "large.blocks": 2 * 32760 * 5120 * 2,
            "total": 2 * 32760 * 5120 * 2,
        }
    with vaccel.accelerate(pipe, vaccel.Schedule([0], num_steps=50, reuse="residual")) as handle:
        assert handle.memory_plan(**size)["total"] == 2 * 16 * 21 * 60 * 104 * 2
    with vaccel.accelerate(pipe, vaccel.MixCache(candidates=(0, 1), block_branches="both")) as handle:
        candidate = handle.memory_plan(**size)["large.states"] / 2
        assert candidate / 2**30 <= 0.64, "arXiv 2508.12691, Table 3: 0.64 GB a candidate"
    with pytest.raises(RuntimeError, match="removed"):
        handle.memory_plan(**size)
