"""cfg_delta_reuse(c, d, w) = c + (1 - w) d."""

import harness
import pytest
import torch

from vaccel import ops

CASE = harness.Case(
    "cfg_delta_reuse",
    2,
    lambda c, d, w: c + (1 - w) * d,
    lambda inputs: (5.3,),
    terms=lambda c, d, w: c.double().abs() + abs(1 - w) * d.double().abs(),
    writes=True,
    differentiable=True,
)

globals().update(harness.tests(CASE))


@pytest.mark.parametrize("impl", harness.impls())
def test_with_the_delta_of_this_very_step_it_is_guidance(impl):
    cond, uncond = harness.tensors(2, (2, 16, 5, 8, 8), torch.float32, device=harness.device_of(impl))
    delta = ops.cfg_delta_store(cond, uncond, impl=impl)
    guided = ops.cfg_combine(cond, uncond, 4.0, impl=impl)
    assert torch.allclose(ops.cfg_delta_reuse(cond, delta, 4.0, impl=impl), guided, rtol=1e-5, atol=1e-5)
